"""PyramidDrop does as its code, and keeps as many tokens as its settings say."""

from typing import Any

import pytest
from against import assert_as_published
from slow_methods import pyramiddrop
from tiny_llava import prompt

from vitcop import PyramidDrop


def test_published_setting() -> None:
    assert PyramidDrop().counts(32, 576) == [288, 144, 72]
    assert [stage.layer for stage in PyramidDrop().program(32).stages] == [8, 16, 24]


@pytest.mark.parametrize(("retain", "counts"), [(192, [312, 156, 78]), (128, [184, 92, 46]), (64, [56, 28, 14])])
def test_matched_settings(retain: int, counts: list[int]) -> None:
    method = PyramidDrop(retain=retain)
    assert method.counts(32, 576) == counts
    assert [stage.layer for stage in method.program(32).stages] == [2, 10, 20]
    assert 2 * 576 + 8 * counts[0] + 10 * counts[1] + 12 * counts[2] == 32 * retain


@pytest.mark.parametrize(("key_heads", "attention"), [(4, "sdpa"), (2, "eager")])
def test_chooses_as_the_published_code(llava: Any, key_heads: int, attention: str) -> None:
    """A padded batch of one image, text alone, and two images: ids restart at each cut, decoding follows."""
    prompts = [prompt(1), prompt(0), prompt(2, text=8)]
    choices = {16: pyramiddrop(8, 4, 2), 32: pyramiddrop(16, 8, 4)}
    report = assert_as_published(llava(key_heads, attention), PyramidDrop(), choices, prompts, new=3)
    assert [(s.layer, s.tokens_out) for s in report.stages] == [(2, [8, 0, 16]), (4, [4, 0, 8]), (6, [2, 0, 4])]
    assert "layers scaled to a decoder of 8: [2, 4, 6] (published: [8, 16, 24] of 32)" in report.notes
    assert report.mean_tokens == (2 * 16 + 2 * 8 + 2 * 4 + 2 * 2 + 2 * 32 + 2 * 16 + 2 * 8 + 2 * 4) / 16


def test_layers_given_by_the_caller_and_another_ratio(llava: Any) -> None:
    method = PyramidDrop(layers=(1, 4), ratio=0.7)
    report = assert_as_published(llava(), method, {16: pyramiddrop(11, 7)}, [prompt(1)])
    assert [s.layer for s in report.stages] == [1, 4] and report.notes == []


def test_keeping_more_than_there_is_keeps_everything() -> None:
    assert PyramidDrop(retain=64).counts(32, 16) == [16, 16, 16]


def test_wrong_settings_and_infeasible_budgets() -> None:
    with pytest.raises(ValueError, match=r"ratio: expected a share in \(0, 1\], got 0"):
        PyramidDrop(ratio=0)
    with pytest.raises(ValueError, match=r"infeasible budget: expected 36.5 to 324.0 of 576 visual tokens"):
        PyramidDrop(retain=30).counts(32, 576)
    assert PyramidDrop(retain=400).counts(32, 576) == [576, 576, 576]  # more than it can average where it prunes
    with pytest.raises(ValueError, match=r"layers: expected ascending layers from 1 to 31, got \[8, 8, 24\]"):
        PyramidDrop(layers=(8, 8, 24)).program(32)
