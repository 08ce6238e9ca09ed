"""FastV does as its code, and keeps as many tokens as its settings say."""

from typing import Any

import pytest
from against import assert_as_published
from slow_methods import fastv
from tiny_llava import prompt

from vitcop import FastV


@pytest.mark.parametrize(("retain", "kept"), [(192, 166), (128, 98), (64, 30)])
def test_published_settings(retain: int, kept: int) -> None:
    assert FastV(retain=retain).counts(32, 576) == [kept]
    assert FastV(retention=retain / 576).counts(32, 576) == [kept]
    assert (2 * 576 + 30 * kept) / 32 == pytest.approx(retain, abs=0.5)  # kept is rounded


@pytest.mark.parametrize(("key_heads", "attention"), [(4, "sdpa"), (2, "eager")])
def test_chooses_as_the_published_code(llava: Any, key_heads: int, attention: str) -> None:
    """A padded batch of one image, text alone, and two images."""
    prompts = [prompt(1), prompt(0), prompt(2, text=8)]
    method = FastV(kept=5)
    choices = {16: fastv(5), 32: fastv(5)}
    report = assert_as_published(llava(key_heads, attention), method, choices, prompts, new=3)
    assert [(s.layer, s.tokens_in, s.tokens_out) for s in report.stages] == [(2, [16, 0, 32], [5, 0, 5])]
    assert report.positions == "original"
    assert report.mean_tokens == pytest.approx(((2 * 16 + 6 * 5) + (2 * 32 + 6 * 5)) / 8 / 2)


def test_another_layer_and_a_budget(llava: Any) -> None:
    method = FastV(retention=0.6, layer=3)
    assert method.counts(8, 16) == [round((8 * 0.6 * 16 - 3 * 16) / 5)] == [6]
    report = assert_as_published(llava(), method, {16: fastv(6)}, [prompt(1)])
    assert report.stages[0].layer == 3


def test_keeping_more_than_there_is_keeps_everything() -> None:
    assert FastV(retain=64).counts(32, 16) == FastV(kept=64).counts(32, 16) == [16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "FastV: expected retain or retention, or kept, got none of them"),
        ({"retain": 64, "kept": 30}, "FastV: expected retain or retention, or kept, got both"),
        ({"retain": 64, "retention": 0.1}, "retain, retention: expected one of them, got both"),
        ({"retain": 0}, "retain: expected a number of tokens, at least 1, got 0"),
        ({"retention": 1.5}, r"retention: expected a share in \(0, 1\], got 1.5"),
        ({"kept": 0}, "kept: expected a number of tokens, at least 1, got 0"),
    ],
)
def test_wrong_settings_name_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastV(**options)


def test_infeasible_budgets_and_layers() -> None:
    with pytest.raises(ValueError, match=r"infeasible budget: expected 36.9 to 576.0 of 576 .* got 32.0"):
        FastV(retain=32).counts(32, 576)
    for layer in (0, 8):
        with pytest.raises(ValueError, match=rf"layers: expected ascending layers from 1 to 7, got \[{layer}\]"):
            FastV(retain=4, layer=layer).program(8)
