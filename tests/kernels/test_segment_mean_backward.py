"""The Triton kernels of segment_mean_backward against the float64 reference."""

import math

import pytest
import torch
from launchers import assert_batch_invariant, assert_exact, both, launch
from segments import plan
from support import assert_same_bits, expanded, layouts, name_of, unit_roundoff

MERGES = ("mean", "anchor_plus_mean")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    ("batch", "n", "segments", "width"),
    [(1, 1, 1, 1), (2, 33, 6, 31), (1, 132, 129, 5), (1, 9, 3, 1100), (0, 4, 2, 8), (2, 5, 0, 3), (2, 5, 3, 0)],
)
def test_is_close_to_the_reference(
    batch: int, n: int, segments: int, width: int, dtype: torch.dtype, merge: str
) -> None:
    csr = tuple(t[:batch] for t in plan(n, segments, max(batch, 1), dropped=n // 9))
    grad = torch.randn(batch, segments, width).to(dtype)
    got, want = both("segment_mean_backward", grad, *csr, repeat=True, merge=merge)
    if merge == "mean" and dtype != torch.float16:  # a quotient: float32 rounds it as float64 does
        assert torch.equal(got, want)
    # With an anchor a float32 sum of two terms (absolute: they may cancel) and one rounding to the dtype.
    top = float(grad.double().abs().max()) if grad.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=2.01 * unit_roundoff(dtype), atol=2.0**-23 * top)


@pytest.mark.parametrize("merge", MERGES)
def test_repeated_tokens_and_anchors_sum_their_shares(merge: str) -> None:
    perm, offsets = torch.tensor([[2, 2, 0, 2, 1, 0]]), torch.tensor([[0, 2, 3, 5, 5]])
    anchors, merged = torch.tensor([[0, 0, 5, 1]]), torch.tensor([[True, True, False, True]])
    grad = torch.randint(-8, 9, (1, 4, 9)) * 2.0  # halves are exact
    assert_exact("segment_mean_backward", grad, perm, offsets, anchors, merged, merge=merge)


def test_nan_and_inf_reach_the_members_of_their_segment_alone() -> None:
    grad = torch.ones(1, 3, 4)
    grad[0, 0, 1], grad[0, 2, 2] = math.nan, -math.inf
    perm, offsets = torch.tensor([[3, 0, 4, 1, 2, 5]]), torch.tensor([[0, 2, 3, 5]])
    got, want = both("segment_mean_backward", grad, perm, offsets)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert got.isnan().sum() == 2 and got.isinf().sum() == 2


def test_every_layout_gives_the_same() -> None:
    csr, grad = plan(9, 3, 2), torch.randn(2, 3, 6)
    for _, view in layouts(grad):
        assert_exact("segment_mean_backward", view, *csr)
    want = launch("segment_mean_backward", grad, *csr, merge="anchor_plus_mean")
    for index in range(4):
        for name, view in layouts(csr[index]):
            got, _ = both(
                "segment_mean_backward", grad, *csr[:index], view, *csr[index + 1 :], merge="anchor_plus_mean"
            )
            assert_same_bits(got, want, f"plan tensor {index} {name}:")
    one = plan(9, 3)
    want = launch("segment_mean_backward", grad, *(torch.stack([t, t]) for t in one), merge="anchor_plus_mean")
    got = launch("segment_mean_backward", grad, *(expanded(t, 2) for t in one), merge="anchor_plus_mean")
    assert_same_bits(got, want, "one plan expanded:")


def test_indices_out_of_range_are_clamped() -> None:
    grad = torch.full((1, 3, 2), 6.0)
    perm, offsets = torch.tensor([[-5, 1, 99, 2]]), torch.tensor([[-3, 1, 3, 77]])
    anchors, merged = torch.tensor([[-7, 50, 1]]), torch.ones(1, 3, dtype=torch.bool)
    for merge in MERGES:
        assert_exact("segment_mean_backward", grad, perm, offsets, anchors, merged, merge=merge)
    wild = torch.tensor([[3, -1, 2, 9]])
    assert launch("segment_mean_backward", grad, perm, wild, anchors, merged, merge=MERGES[1]).isfinite().all()


@pytest.mark.parametrize("merge", MERGES)
def test_a_batch_changes_no_bit(merge: str) -> None:
    grad = torch.randn(3, 5, 33).bfloat16()
    assert_batch_invariant("segment_mean_backward", [grad, *plan(21, 5, 3)], merge=merge)
