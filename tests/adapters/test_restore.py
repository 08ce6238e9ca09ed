"""A model is as it was after pruning, whatever happened inside."""

import gc
from typing import Any

import pytest
import torch
from families import Family
from fault_injection import snapshot
from tiny_llava import batch, prompt
from torch import Tensor

import vitcop
from vitcop import ViTCoP
from vitcop.methods import Context

pytestmark = pytest.mark.family("llava")


class Breakable(ViTCoP):
    broken = False

    def cluster(self, ctx: Context, center_ratio: float) -> tuple[Tensor, int]:
        if self.broken:
            raise KeyError("broken")
        return super().cluster(ctx, center_ratio)


@pytest.fixture
def used(llava: Any) -> Any:
    """A model that has run: transformers installs hooks of its own at the first forward."""
    model = llava()
    with torch.no_grad():
        model(**batch([prompt(1)]), output_hidden_states=True)
    return model


def test_hooks_attributes_and_outputs_are_as_before(family: Family) -> None:
    model, inputs = family.model(), family.batch(family.prompts())
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)  # transformers installs hooks of its own at the first forward
    before, plain = snapshot(model), model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with vitcop.prune(model, ViTCoP(retention=0.3)):
        assert snapshot(model) != before
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert snapshot(model) == before
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), plain)


def test_after_an_exception_inside(used: Any) -> None:
    before = snapshot(used)
    with pytest.raises(KeyError), vitcop.prune(used, ViTCoP(retention=0.3)):
        raise KeyError
    assert snapshot(used) == before


def test_after_an_exception_within_a_forward(used: Any) -> None:
    """One raised within a hook, by a stage half-way through the decoder; then the same handle goes on working."""
    before, inputs = snapshot(used), batch([prompt(1)])
    method = Breakable(retention=0.3)
    with torch.no_grad(), vitcop.prune(used, method):
        good = used(**inputs).logits
        method.broken = True
        with pytest.raises(KeyError, match="broken"):
            used(**inputs)
        method.broken = False
        assert torch.equal(used(**inputs).logits, good)
        method.broken = True
        with pytest.raises(KeyError, match="broken"):
            used(**inputs)
    assert snapshot(used) == before


def test_attach_until_remove(used: Any) -> None:
    before, inputs = snapshot(used), batch([prompt(1)])
    handle = vitcop.attach(used, ViTCoP(retention=0.3))
    with torch.no_grad():
        used(**inputs)
    assert len(handle.report.stages) == 3
    handle.remove()
    handle.remove()
    assert snapshot(used) == before
    assert len(handle.report.stages) == 3


def test_attaching_twice_raises_and_leaves_the_first(used: Any) -> None:
    with vitcop.prune(used, ViTCoP(retention=0.3)) as report:
        with pytest.raises(ValueError, match="already has a pruning method"):
            vitcop.attach(used, ViTCoP(retention=0.5))
        with torch.no_grad():
            used(**batch([prompt(1)]))
        assert len(report.stages) == 3
    with vitcop.prune(used, ViTCoP(retention=0.5)):
        pass


def test_a_failed_attach_leaves_nothing(used: Any) -> None:
    before = snapshot(used)
    with pytest.raises(ValueError, match="infeasible budget"):
        vitcop.attach(used, ViTCoP(retention=0.1, stage1_ratio=0.9))
    assert snapshot(used) == before
    with vitcop.prune(used, ViTCoP(retention=0.5)):
        pass


@pytest.mark.feature("memory")
def test_nothing_keeps_pruned_activations(used: Any) -> None:
    with vitcop.prune(used, ViTCoP(retention=0.3)), torch.no_grad():
        used(**batch([prompt(1)]))
        gc.collect()
        wide = [t for t in gc.get_objects() if torch.is_tensor(t) and t.shape[-2:] == (26, 64)]
    assert wide == []


def test_a_lost_handle_is_detached_by_the_model(used: Any) -> None:
    before = snapshot(used)
    vitcop.attach(used, ViTCoP(retention=0.3))
    vitcop.detach(used)
    assert snapshot(used) == before
    vitcop.detach(used)  # nothing to do
