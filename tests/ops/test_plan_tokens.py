"""plan_tokens: Algorithm 3 in plain Python, then the kernel against the reference; everything here is exact."""

import math

import pytest
import torch
from support import FLOATS, assert_batch_invariant, assert_exact, assert_right, call, layouts, name_of, reference
from torch import Tensor

QUOTAS = [("exact", True), ("floor", True), ("floor", False), ("released", True)]
quotas = pytest.mark.parametrize(("quota", "fill"), QUOTAS, ids=["exact", "floor", "floor without fill", "released"])


def draw(n: int, k: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Labels of uneven clusters, some of them outside [0, k); scores with ties and sometimes NaN or infinite."""
    weights = torch.rand(k, generator=generator) ** 3 + 1e-3
    labels = torch.multinomial(weights, n, replacement=True, generator=generator)
    outside = torch.rand(n, generator=generator)
    labels = torch.where(outside < 0.04, -1, torch.where(outside > 0.98, k + 1, labels))
    scores = torch.randint(-4, 20, (n,), generator=generator) / 4
    strange = torch.rand(n, generator=generator)
    scores = torch.where(strange < 0.02, math.nan, torch.where(strange > 0.98, math.inf, scores))
    return labels, scores.to(dtype)


@quotas
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_is_algorithm_3_on_random_small_inputs(
    dtype: torch.dtype, quota: str, fill: bool, generator: torch.Generator
) -> None:
    for trial in range(40):
        n, k = 1 + trial % 23, 1 + trial % 7
        labels, scores = draw(n, k, generator, dtype)
        for budget in {1, 2, k, (n + k) // 2, n - 1, n, n + 3}:
            if budget >= 1:
                assert_right("plan_tokens", labels, scores, k, budget, quota=quota, fill=fill)


HAND_MADE = {
    "one token": ([0], [1.0], 1, 1),
    "two tokens to one": ([0, 0], [1.0, 2.0], 1, 1),
    "one cluster": ([0] * 7, [3.0, 1, 4, 1, 5, 9, 2], 1, 4),
    "singletons": ([4, 3, 2, 1, 0], [1.0, 2, 3, 4, 5], 5, 4),
    "clusters of one keep no elite": ([0, 1, 2, 2, 2, 2, 2], [1.0] * 7, 3, 5),
    "quota beyond a small cluster": ([0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1.0] * 10, 2, 9),
    "equal sums": ([0, 1, 2, 3, 0, 1, 2, 3], [1.0] * 8, 4, 2),
    "a cluster of NaN": ([0, 0, 1, 1, 2, 2], [math.nan, math.nan, 1.0, 2.0, 3.0, 4.0], 3, 2),
    "opposite infinities": ([0, 0, 1, 1, 2, 2], [math.inf, -math.inf, 1.0, 2.0, -math.inf, 4.0], 3, 2),
    "signed zeros": ([0, 0, 0, 1, 1], [0.0, -0.0, 0.0, -0.0, 0.0], 2, 3),
    "nobody in a cluster": ([-1, 9, -5], [1.0, 2.0, 3.0], 2, 2),
    "most are in no cluster": ([-1, 0, 7, -1, 0, -1], [6.0, 5, 4, 3, 2, 1], 1, 4),
    "empty clusters between": ([9, 0, 9, 5, 5, 5], [1.0, 2, 3, 4, 5, 6], 10, 4),
    "largest labels": ([2**40, -(2**40), 1, 0], [1.0, 2, 3, 4], 2, 2),
}


@quotas
@pytest.mark.parametrize("case", HAND_MADE.values(), ids=HAND_MADE.keys())
def test_hand_made_cases(case: tuple, quota: str, fill: bool) -> None:
    labels, scores, k, budget = case
    assert_right("plan_tokens", torch.tensor(labels), torch.tensor(scores), k, budget, quota=quota, fill=fill)


def test_a_worked_example_of_equation_5() -> None:
    """Clusters of 5, 3 and 2 tokens, budget 6: B_e = 3, floors 1, 0, 0, remainders 5, 9, 6, so labels 1 and 2 get one
    more."""
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    scores = torch.tensor([5.0, 1, 2, 3, 4, 9, 8, 7, 1, 0])
    perm, offsets, anchors, merged = call("plan_tokens", labels, scores, 3, 6)
    assert anchors.tolist() == [1, 3, 6, 7, 8, 9]
    assert merged.tolist() == [False, True, True, False, True, False]
    assert perm.tolist() == [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert offsets.tolist() == [0, 1, 5, 7, 8, 9, 10]
    perm, offsets, anchors, merged = call("plan_tokens", labels, scores, 3, 6, quota="floor", fill=False)
    assert anchors.tolist() == [1, 3, 6, 9, -1, -1] and offsets.tolist() == [0, 1, 5, 8, 10, 10, 10]
    assert merged.tolist() == [False, True, True, True, False, False]


@quotas
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(
    ("n", "k", "budget"),
    [(576, 104, 192), (288, 52, 253), (172, 20, 77), (172, 20, 10), (2880, 300, 640), (172, 20, 172), (31, 31, 30)],
)
def test_equals_the_reference(n: int, k: int, budget: int, dtype: torch.dtype, quota: str, fill: bool) -> None:
    generator = torch.Generator().manual_seed(n + k)
    drawn = [draw(n, k, generator, dtype) for _ in range(2)]
    labels, scores = (torch.stack(t) for t in zip(*drawn, strict=True))
    assert_exact("plan_tokens", labels, scores, k, budget, quota=quota, fill=fill)
    smooth = torch.rand(2, n, generator=generator).to(dtype)
    clean = labels.clamp(0, k - 1)
    perm, offsets, anchors, _merged = assert_exact("plan_tokens", clean, smooth, k, budget, quota=quota, fill=fill)
    assert perm.sort(-1).values.equal(torch.arange(n).expand(2, n))
    if quota == "exact" or (quota == "floor" and fill):
        assert (offsets.diff() > 0).all() and (anchors >= 0).all()


@quotas
def test_sums_of_huge_scores_stay_finite(quota: str, fill: bool) -> None:
    """Summed in float64: in float32 both sums of 3e38 would be infinite and the lower label would win."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    scores = torch.tensor([3e38, 3e38, 3e38, 3e38, 3e38, 1.0, 1.0])
    assert_right("plan_tokens", labels, scores, 3, 2, quota=quota, fill=fill)


@quotas
def test_empty_batches_and_empty_samples(quota: str, fill: bool) -> None:
    labels, scores = torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5)
    shapes = [t.shape for t in assert_exact("plan_tokens", labels, scores, 2, 3, quota=quota, fill=fill)]
    assert shapes == [(0, 5), (0, 4), (0, 3), (0, 3)]
    labels, scores = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0)
    perm, offsets, anchors, merged = assert_exact("plan_tokens", labels, scores, 2, 3, quota=quota, fill=fill)
    assert offsets.tolist() == [[0], [0]] and perm.shape == anchors.shape == merged.shape == (2, 0)


@quotas
def test_every_layout_and_both_integer_types_give_the_same(quota: str, fill: bool, generator: torch.Generator) -> None:
    drawn = [draw(50, 6, generator) for _ in range(3)]
    labels, scores = (torch.stack(t) for t in zip(*drawn, strict=True))
    want = reference("plan_tokens", labels, scores, 6, 20, quota=quota, fill=fill)
    for dtype in (torch.int64, torch.int32):
        for name, view in layouts(labels.to(dtype)):
            got = call("plan_tokens", view, scores, 6, 20, quota=quota, fill=fill)
            assert all(map(torch.equal, got, want)), name
    for name, view in layouts(scores):
        got = call("plan_tokens", labels, view, 6, 20, quota=quota, fill=fill)
        assert all(map(torch.equal, got, want)), name
    one = torch.zeros(1, dtype=torch.int64).expand(2, 9), torch.ones(1, 1).expand(2, 9)
    assert_exact("plan_tokens", *one, 1, 4, quota=quota, fill=fill)


@quotas
def test_a_batch_and_threads_change_nothing(quota: str, fill: bool, generator: torch.Generator) -> None:
    drawn = [draw(200, 20, generator) for _ in range(4)]
    labels, scores = (torch.stack(t) for t in zip(*drawn, strict=True))
    assert_batch_invariant("plan_tokens", [labels, scores], 20, 70, samples=4, quota=quota, fill=fill)
