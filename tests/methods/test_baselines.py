"""Random, uniform and farthest-point choice, alone and at the schedules of other methods."""

from typing import Any

import pytest
import torch
from against import assert_as_published
from checks import generate
from slow_methods import divprune, listed
from tiny_llava import batch, prompt

import vitcop
from vitcop import DivPrune, FastV, PyramidDrop, Random, SparseVLM, Uniform, ViTCoP
from vitcop.methods.divprune import farthest_points
from vitcop.methods.random import mix

SCHEDULES = [FastV(kept=5), PyramidDrop(), SparseVLM(kept=(9, 5, 2)), ViTCoP(retention=0.3)]


def drawn(seed: int, stage: int, tokens: int, count: int) -> list[int]:
    """The draw in Python's own integers."""
    start = mix(seed ^ (stage * 0x9E3779B9 & 0xFFFFFFFF))
    order = sorted(range(tokens), key=lambda i: (-(mix(i ^ start) >> 8), i))
    return sorted(order[:count])


@pytest.mark.parametrize("baseline", [Random, Uniform, DivPrune])
@pytest.mark.parametrize("other", SCHEDULES, ids=lambda method: type(method).__name__)
def test_the_schedule_of_another_method(llava: Any, baseline: Any, other: Any) -> None:
    inputs, reports = batch([prompt(1), prompt(2)]), []
    for method in (other, baseline(schedule_of=other)):
        with vitcop.prune(llava(), method) as report, torch.no_grad():
            llava()(**inputs, use_cache=True)
        reports.append(report)
    expected, report = reports
    for a, b in zip(expected.stages, report.stages, strict=True):
        assert (a.layer, a.tokens_in, a.tokens_out) == (b.layer, b.tokens_in, b.tokens_out)
    assert report.mean_tokens == expected.mean_tokens and report.positions == expected.positions
    assert report.flops == expected.flops and report.kv_bytes == expected.kv_bytes


def test_random_draws_are_the_hash_of_seed_stage_and_token(llava: Any) -> None:
    prompts = [prompt(1), prompt(2), prompt(0), prompt(1, seed=1, text=8)]
    for seed in (0, 3, 2**32 - 1):
        _, report = generate(llava(), Random(schedule_of=FastV(kept=5), seed=seed), batch(prompts), new=1)
        kept = report.stages[0].kept
        assert kept[0].tolist() == kept[3].tolist() == drawn(seed, 0, 16, 5)  # whatever else is in the batch
        assert kept[1].tolist() == drawn(seed, 0, 32, 5)
    assert drawn(0, 0, 576, 64)[:6] == [8, 15, 30, 40, 53, 56]  # on every machine, for ever


def test_random_draws_every_token_equally_often() -> None:
    """64 of 576, 2000 seeds: 222 times on average; the extremes of 576 binomials stay within 4.5 deviations of 14."""
    counts = torch.zeros(576)
    for seed in range(2000):
        tokens = torch.arange(576)
        scores = (mix(tokens ^ mix(seed)) >> 8).float()
        counts[scores.topk(64).indices] += 1
    assert (counts - 2000 / 9).abs().max() < 4.5 * (2000 / 9 * 8 / 9) ** 0.5


def test_stages_draw_differently() -> None:
    assert len({tuple(drawn(0, stage, 576, 64)) for stage in range(8)}) == 8


def test_random_and_uniform_generate_as_recomputing_every_token(llava: Any) -> None:
    prompts = [prompt(1), prompt(0), prompt(2)]
    first = drawn(0, 0, 16, 8)
    assert_as_published(llava(), Random(retention=0.5), {16: listed(first), 32: listed(drawn(0, 0, 32, 16))}, prompts)
    stride = {16: listed([1, 4, 8, 11, 14]), 32: listed([3, 9, 16, 22, 28])}  # floor((i + 1/2) * V / 5)
    assert_as_published(llava(), Uniform(schedule_of=FastV(kept=5)), stride, prompts)


def test_divprune_generates_as_the_published_code(llava: Any) -> None:
    prompts = [prompt(1), prompt(0), prompt(2)]
    assert_as_published(llava(), DivPrune(retention=0.25), {16: divprune(4), 32: divprune(8)}, prompts)


def test_farthest_points_takes_every_duplicate_once() -> None:
    """Ties go to the lower index, and a token is chosen once even where all are alike."""
    assert farthest_points(torch.ones(1, 5, 3), 3).tolist() == [[0, 1, 2]]
    points = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1], [-1, 0]]])
    assert farthest_points(points, 3).tolist() == [[0, 2, 4]]  # 4 is alone; then 0, of two; then 2, of two
    assert farthest_points(points, 5).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("baseline", [Random, Uniform, DivPrune])
def test_budgets(baseline: Any) -> None:
    for retain in (192, 64, 1):
        assert baseline(retain=retain).program(32).counts(576) == [retain]
    message = f"{baseline.__name__}: expected retain or retention, or schedule_of, got"
    with pytest.raises(ValueError, match=f"{message} none"):
        baseline()
    with pytest.raises(ValueError, match=f"{message} both"):
        baseline(retain=64, schedule_of=FastV(retain=64))


def test_seeds_out_of_range() -> None:
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"seed: expected a number in \[0, 2\^32\), got {seed}"):
            Random(retain=64, seed=seed)
