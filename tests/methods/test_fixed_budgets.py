"""A fixed budget over images of any size (dynamic resolution): small ones stay whole, none of them is refused."""

from typing import Any

import pytest
import torch

import vitcop
from vitcop import methods
from vitcop.methods import FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP

LAYERS = 32
SIZES = range(1, 3001)
CASES: dict[str, Any] = {
    f"{name}, {retain}": lambda kind=kind, retain=retain: kind(retain=retain)
    for name, kind in methods.METHODS.items()
    for retain in (1, 8, 64, 192)
} | {
    "released": lambda: ViTCoP(retain=64, semantics="released"),
    "tuned": lambda: ViTCoP.tuned(retain=64),
    "half after Stage I": lambda: ViTCoP(retain=64, stage1_ratio=0.5),
    "Stage I alone": lambda: ViTCoP(retain=64, stage1_power=1),
    "a tenth after Stage III": lambda: ViTCoP(retain=64, stage3_ratio=0.1),
    "ten contextual": lambda: VisionZip(retain=64, contextual=10),
    "without means": lambda: SparseVLM(retain=64, recycle=False),
    "early cuts": lambda: PyramidDrop(retain=64, layers=(1, 2)),
}  # fmt: skip


def average(method: Any, total: int, left: Any) -> float:
    """Tokens of a layer, by definition."""
    stages = method.program(LAYERS).stages
    held = [total] * LAYERS
    for stage, tokens in zip(stages, left, strict=True):
        held[stage.layer :] = [tokens] * (LAYERS - stage.layer)
    return sum(held) / LAYERS


@pytest.mark.parametrize("name", CASES)
def test_small_samples_stay_whole_and_only_large_ones_are_refused(name: str) -> None:
    method = CASES[name]()
    counts, refused, whole = method.program(LAYERS).counts, [], []
    for total in SIZES:
        try:
            left = list(counts(total))
        except ValueError as error:
            assert "infeasible budget" in str(error)
            refused.append(total)
            continue
        assert all(0 < after <= before for before, after in zip([total, *left], left, strict=False))
        if left == [total] * len(left):
            whole.append(total)
        elif not isinstance(method, SparseVLM) or total != 576:  # its published settings average more
            tolerance = 10 if isinstance(method, SparseVLM) else len(left) + 1  # its means are never left out
            assert average(method, total, left) <= method.retain + tolerance
    assert whole[: method.retain] == list(range(1, method.retain + 1))
    assert not refused or refused[0] > whole[-1]  # every sample refused is larger than those that stay whole
    assert refused == list(range(refused[0], SIZES.stop)) if refused else True


@pytest.mark.parametrize("kind", [PyramidDrop, SparseVLM])
def test_a_share_stays_strict(kind: Any) -> None:
    for total in SIZES:
        with pytest.raises(ValueError, match="infeasible budget"):
            kind(retention=0.9).program(LAYERS).counts(total)


def test_what_was_refused_among_what_was_taken() -> None:
    counts = PyramidDrop(retain=64).program(LAYERS).counts
    assert [list(counts(total)) for total in (64, 65, 113)] == [[total] * 3 for total in (64, 65, 113)]
    assert list(counts(114)) == [113, 56, 28]
    with pytest.raises(ValueError, match=r"expected .* of 1024 visual tokens on average over the layers"):
        counts(1024)
    with pytest.raises(ValueError, match="infeasible"):
        FastV(retain=64).program(LAYERS).counts(1024)


@pytest.mark.parametrize("name", CASES)
def test_notes_name_the_samples_that_stay_whole_though_larger_than_the_budget(name: str) -> None:
    method = CASES[name]()
    program = method.program(LAYERS)
    for total in (1, method.retain, method.retain + 1, 2 * method.retain, 1500):
        try:
            whole = list(program.counts(total))[-1] == total
        except ValueError:
            continue
        note = program.kept_whole(total)
        assert (note is not None) == (whole and total > method.retain), total
        assert note is None or (f"all {total} visual tokens" in note and f"retain={method.retain}" in note)


def test_the_report_says_that_a_sample_stayed_whole() -> None:
    pytest.importorskip("transformers")
    from families import FAMILIES

    family = FAMILIES["llava"]
    model, one, two = family.model(), family.batch([family.prompt(1)]), family.batch([family.prompt(3)])
    note = "PyramidDrop keeps all 16 visual tokens"
    for method in (PyramidDrop(retain=15), methods.Uniform(schedule_of=PyramidDrop(retain=15))):
        with torch.no_grad(), vitcop.prune(model, method) as report:
            for inputs, whole in ((one, True), (two, False), (one, True), (one, True)):
                model(**inputs)
                assert sum(note in line for line in report.notes) == whole
            assert any("layers scaled" in line for line in report.notes)
        with torch.no_grad(), vitcop.prune(model, method, budget_per="image") as report:
            model(**two)
        assert note in report.notes[0]
