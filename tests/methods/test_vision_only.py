"""VisionOnly does as it says: elites and means before the decoder, always as many as asked for."""

from typing import Any

import pytest
import torch
from against import assert_as_published
from families import FAMILIES, Family, parameters
from slow_methods import vision_only
from tiny_llava import prompt

import vitcop
from vitcop import VisionOnly
from vitcop.methods import Context


@pytest.mark.parametrize(("retain", "merged_share"), [(1, 0.5), (5, 0.25), (5, 1.0), (8, 0.5), (12, 0.5), (15, 0.25)])
def test_equals_plain_loops(llava: Any, retain: int, merged_share: float) -> None:
    """A padded batch of one image, text alone, and two images, which share the budget."""
    prompts = [prompt(1), prompt(0), prompt(2, text=8), prompt(1, seed=3, text=9)]
    method = VisionOnly(retain=retain, merged_share=merged_share)
    choices = dict.fromkeys((16, 32), vision_only(method))
    report = assert_as_published(llava(), method, choices, prompts)
    (stage,) = report.stages
    assert stage.tokens_out == [retain, 0, retain, retain] and stage.merged is not None
    assert stage.merged[0].sum() == max(1, round(merged_share * retain))
    assert sum(len(members) for members in stage.segments(0)) == min(16, max(8, 2 * retain))  # the rest is dropped


TOWERS = parameters(*(f.name for f in FAMILIES.values() if f.tower == "vision_tower" and f.name != "llava"))


@pytest.mark.parametrize("family", TOWERS)
@pytest.mark.parametrize("budget_per", ["sample", "image"])
def test_on_tiles_and_frames(family: Family, budget_per: str) -> None:
    """Base pictures and tiles, shrunk pictures, pooled frames, squares: each clustered by itself."""
    prompts = [family.prompts()[-1], family.prompt(0), family.prompt(2)]
    method = VisionOnly(retain=7)
    choices = dict.fromkeys((family.count(ids) for ids, _ in prompts), vision_only(method))
    report = assert_as_published(family.model(), method, choices, prompts, 1, budget_per, family.batch)
    images = 2 if budget_per == "image" else 1
    assert report.stages[0].tokens_out[1:] == [0, 7 * images]


def test_line_breaks_go_first_and_merge_among_themselves() -> None:
    family = FAMILIES["llava_next"]
    model, sample = family.model(), family.prompt(1)
    breaks = [i for i, s in enumerate(saliency_of(model, family, sample)) if s != s]
    total = family.count(sample[0])
    assert breaks
    for retain in (5, total - 2):
        with vitcop.prune(model, VisionOnly(retain=retain)) as report, torch.no_grad():
            model(**family.batch([sample]))
        segments = report.stages[0].segments(0)
        merged = [set(members) for members in segments if len(members) > 1]
        if retain == 5:
            assert not {token for members in segments for token in members} & set(breaks)
        assert all(members <= set(breaks) or not members & set(breaks) for members in merged)


def saliency_of(model: Any, family: Family, sample: Any) -> list[float]:
    seen: list[float] = []

    class Watched(VisionOnly):
        def select(self, ctx: Context) -> Any:
            seen.extend(ctx.saliency[0].tolist())
            return super().select(ctx)

    with vitcop.prune(model, Watched(retain=5)), torch.no_grad():
        model(**family.batch([sample]))
    return seen


def test_the_split() -> None:
    method = VisionOnly(retain=64)
    assert method.program(32).counts(576) == [64] and method.program(32).counts(50) == [50]
    assert method.split(576, 64) == (288, 32)
    assert method.split(576, 192) == (384, 96)  # twice the budget, where that is more than half
    assert method.split(576, 400) == (576, 200)
    assert method.split(2928, 64) == (1464, 32)
    assert VisionOnly(retain=1, merged_share=0.1).split(576, 1) == (288, 1)
    assert [stage.layer for stage in method.program(32).stages] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "VisionOnly: expected retain or retention, or nothing else, got none of them"),
        ({"retain": 4, "retention": 0.5}, "retain, retention: expected one of them, got both"),
        ({"retain": 4, "merged_share": 0}, r"merged_share: expected a share in \(0, 1\], got 0"),
        ({"retain": 4, "merged_share": 1.5}, r"merged_share: expected a share in \(0, 1\], got 1.5"),
        ({"retain": 4, "stage1_ratio": -0.5}, r"stage1_ratio: expected a share in \(0, 1\], got -0.5"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionOnly(**options)
