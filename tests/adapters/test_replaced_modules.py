"""Modules of a vision tower that are replaced after attaching: what is there now is what counts."""

import copy
from typing import Any

import pytest
import torch
from families import Family
from torch import nn

import vitcop
from vitcop import VisionOnly
from vitcop.engine.hooks import uncopied

METHOD = VisionOnly(retention=0.3)


class Adapted(nn.Module):
    """A projection with another one added, as LoRA does."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.extra = base, nn.Linear(base.in_features, base.out_features, bias=False)
        nn.init.normal_(self.extra.weight, 0, 0.5, generator=torch.Generator().manual_seed(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = self.base(x) + self.extra(x)
        return adapted


def adapt(tower: Any, spare: Any) -> None:
    for module in list(tower.modules()):
        for name in ("q_proj", "k_proj", "qkv"):
            if isinstance(getattr(module, name, None), nn.Linear):
                setattr(module, name, Adapted(getattr(module, name)))


def replace_layers(tower: Any, spare: Any) -> None:
    for name, module in spare.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            with torch.no_grad():
                for weight in module.parameters():
                    weight.mul_(1.5)
            layers: Any = tower.get_submodule(name)
            for number, layer in enumerate(module):
                layers[number] = layer
            return


@pytest.mark.parametrize("change", [adapt, replace_layers])
def test_a_tower_that_has_changed_since(family: Family, change: Any) -> None:
    inputs, found = family.batch([family.prompt(1), family.prompt(2)]), []
    for late in (False, True):
        model = family.build(layers=4)
        tower = getattr(model.model, family.tower)
        spare = copy.deepcopy(tower)  # one that is being pruned cannot be copied
        if not late:
            change(tower, spare)
        with torch.no_grad(), vitcop.prune(model, METHOD) as report:
            if late:  # and before a forward: transformers itself hooks layers in the first one
                change(tower, spare)
            logits = model(**inputs, use_cache=False).logits
        found.append((logits, report.stages[0].kept))
        hooks = [hook for m in tower.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        assert not any(isinstance(hook, uncopied) for hook in hooks)
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][0], found[1][0])
