"""Weights that are empty outside forwards, as ZeRO-3 has them: filled before a module's forward, freed behind it."""

from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn

import vitcop
from vitcop import FastV, SparseVLM, ViTCoP
from vitcop.engine import parallel

METHODS: dict[str, Any] = {
    "ViTCoP": ViTCoP(retention=0.5),
    "ViTCoP, by the layer before": ViTCoP(retention=0.5, key_source="previous"),
    "FastV": FastV(retention=0.5),
    "SparseVLM": SparseVLM(kept=(8, 6, 4), layers=(2, 3, 4)),
}


def gathered(model: Any, unit: str) -> None:
    """By whole decoder layers, or by each module that has weights."""
    layers = list(model.model.language_model.layers)
    units = layers if unit == "layers" else [m for layer in layers for m in layer.modules() if m._parameters]
    for module in units:
        weights = {weight: weight.data for weight in module.parameters(recurse=unit == "layers")}

        def fill(module: nn.Module, args: Any, weights: Any = weights) -> None:
            for weight, data in weights.items():
                weight.data = data

        def free(module: nn.Module, args: Any, output: Any, weights: Any = weights) -> None:
            for weight in weights:
                weight.data = weight.data.new_empty(0)

        module.register_forward_pre_hook(fill)
        module.register_forward_hook(free)
        free(module, None, None)


def run(model: Any, method: Any, inputs: Any, unit: str | None = None) -> Any:
    with torch.no_grad(), vitcop.prune(model, method) as report:
        if unit is not None:
            gathered(model, unit)
        logits = model(**inputs, use_cache=False).logits
    return logits, [stage.kept.tolist() for stage in report.stages]


@pytest.mark.parametrize("unit", ["layers", "modules"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_stages_choose_as_with_whole_weights(unit: str, name: str, when: str) -> None:
    family, method = FAMILIES["llava"], METHODS[name]
    inputs = family.batch([family.prompt(1), family.prompt(2)])
    want, kept = run(family.model(), method, inputs)
    model = family.build()
    if when == "before":
        gathered(model, unit)
    got, found = run(model, method, inputs, unit if when == "after" else None)
    assert found == kept
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_modules_that_gather_by_themselves_are_refused_where_ranks_differ(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model = FAMILIES["llava"], FAMILIES["llava"].build(layers=3)
    monkeypatch.setattr(parallel, "several_processes", lambda: True)
    inputs, ran = family.batch([family.prompt(1)]), []
    if when == "before":
        gathered(model, "modules")
        with pytest.raises(NotImplementedError, match="gather whole layers"):
            vitcop.attach(model, METHODS["ViTCoP"])
        return
    with vitcop.prune(model, METHODS["ViTCoP"]):
        gathered(model, "modules")
        model.model.vision_tower.register_forward_hook(lambda *_: ran.append(1))
        with pytest.raises(NotImplementedError, match="gather whole layers"):
            model(**inputs)
    assert not ran
