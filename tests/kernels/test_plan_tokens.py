"""The Triton kernels of plan_tokens: the reference's plan, exactly."""

import math

import pytest
import torch
from launchers import assert_batch_invariant, assert_exact, kernel_of
from support import layouts
from torch import Tensor

quotas = pytest.mark.parametrize(
    ("quota", "fill"),
    [("exact", True), ("floor", True), ("floor", False), ("released", True)],
    ids=["exact", "floor", "floor without fill", "released"],
)


def draw(n: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Labels of uneven clusters, some of them outside [0, k); scores with ties and sometimes NaN or infinite."""
    labels = torch.multinomial(torch.rand(k) ** 3 + 1e-3, n, replacement=True)
    outside, strange = torch.rand(n), torch.rand(n)
    labels = torch.where(outside < 0.04, -1, torch.where(outside > 0.98, k + 1, labels))
    scores = torch.randint(-4, 20, (n,)) / 4
    return labels, torch.where(strange < 0.02, math.nan, torch.where(strange > 0.98, math.inf, scores)).to(dtype)


@quotas
def test_small_inputs_at_many_budgets(quota: str, fill: bool) -> None:
    for n, k, dtype in ((1, 1, torch.float32), (13, 6, torch.bfloat16), (22, 5, torch.float32)):
        for budget in {1, (n + k) // 2, max(n - 1, 1), n + 3}:
            drawn = [draw(n, k, dtype) for _ in range(2)]
            labels, scores = (torch.stack(t) for t in zip(*drawn, strict=True))
            assert_exact("plan_tokens", labels, scores, k, budget, quota=quota, fill=fill)


HAND_MADE = {
    "one cluster": ([0] * 7, [3.0, 1, 4, 1, 5, 9, 2], 1, 4),
    "clusters of one keep no elite": ([0, 1, 2, 2, 2, 2, 2], [1.0] * 7, 3, 5),
    "quota beyond a small cluster": ([0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1.0] * 10, 2, 9),
    "two full rounds": ([0] * 2 + [1] * 2 + [2] * 2 + [3] * 40, [1.0] * 46, 4, 45),
    "equal sums": ([0, 1, 2, 3, 0, 1, 2, 3], [1.0] * 8, 4, 2),
    "a cluster of NaN": ([0, 0, 1, 1, 2, 2], [math.nan, math.nan, 1.0, 2.0, 3.0, 4.0], 3, 2),
    "opposite infinities": ([0, 0, 1, 1, 2, 2], [math.inf, -math.inf, 1.0, 2.0, -math.inf, 4.0], 3, 2),
    "huge sums": ([0, 0, 0, 1, 1, 2, 2], [3e38, 3e38, 3e38, 3e38, 3e38, 1.0, 1.0], 3, 2),
    "signed zeros": ([0, 0, 0, 1, 1], [0.0, -0.0, 0.0, -0.0, 0.0], 2, 3),
    "nobody in a cluster": ([-1, 9, -5], [1.0, 2.0, 3.0], 2, 2),
    "empty clusters between": ([9, 0, 9, 5, 5, 5], [1.0, 2, 3, 4, 5, 6], 10, 4),
    "largest labels": ([2**40, -(2**40), 1, 0], [1.0, 2, 3, 4], 2, 2),
}


@quotas
@pytest.mark.parametrize("case", HAND_MADE.values(), ids=HAND_MADE.keys())
def test_hand_made_cases(case: tuple, quota: str, fill: bool) -> None:
    labels, scores, k, budget = case
    assert_exact("plan_tokens", torch.tensor(labels), torch.tensor(scores), k, budget, quota=quota, fill=fill)


@quotas
@pytest.mark.parametrize(("n", "k", "budget"), [(172, 20, 77), (172, 30, 10)])
def test_real_sizes(n: int, k: int, budget: int, quota: str, fill: bool) -> None:
    labels, scores = draw(n, k)
    assert_exact("plan_tokens", labels, scores, k, budget, repeat=True, quota=quota, fill=fill)


@quotas
@pytest.mark.parametrize("budget", [20, 180])
def test_samples_longer_than_a_block(monkeypatch: pytest.MonkeyPatch, quota: str, fill: bool, budget: int) -> None:
    monkeypatch.setattr(kernel_of("plan_tokens"), "MAX_BLOCK", 128)
    labels, scores = draw(200, 140)
    assert_exact("plan_tokens", labels, scores, 140, budget, quota=quota, fill=fill)


@quotas
def test_empty_batches_and_empty_samples(quota: str, fill: bool) -> None:
    for shape in ((0, 5), (2, 0)):
        labels, scores = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        assert_exact("plan_tokens", labels, scores, 2, 3, quota=quota, fill=fill)


def test_every_layout_and_both_integer_types_give_the_same() -> None:
    labels, scores = (torch.stack(t) for t in zip(*[draw(30, 6) for _ in range(2)], strict=True))
    for _, view in [*layouts(labels), ("int32", labels.int())]:
        assert_exact("plan_tokens", view, scores, 6, 15)
    for _, view in layouts(scores):
        assert_exact("plan_tokens", labels, view, 6, 3, quota="released")


@quotas
def test_a_batch_changes_no_bit(quota: str, fill: bool) -> None:
    labels, scores = (torch.stack(t) for t in zip(*[draw(40, 8) for _ in range(2)], strict=True))
    assert_batch_invariant("plan_tokens", [labels, scores], 8, 30, quota=quota, fill=fill)
