"""The Triton kernel of segment_mean against the float64 reference."""

import math
from typing import Any

import pytest
import torch
from launchers import assert_batch_invariant, assert_exact, both, launch
from segments import plan
from support import LOW_PRECISION, layouts, name_of, unit_roundoff
from torch import Tensor

MERGES = ("mean", "anchor_plus_mean")
DTYPES = (torch.float32, *LOW_PRECISION)


def assert_close(x: Tensor, csr: tuple[Tensor, ...], **kwargs: Any) -> Tensor:
    """One rounding to the dtype; before it a float32 sum, whose error is absolute because terms may cancel."""
    got, want = both("segment_mean", x, *csr, repeat=True, **kwargs)
    top = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
    longest = float(csr[1].diff().max()) if csr[1].shape[-1] > 1 and csr[1].numel() else 0.0
    atol = 2.0**-24 * (8 + longest) * top + 2.0**-38 * (x.dtype == torch.float16)
    torch.testing.assert_close(got, want, rtol=2.01 * unit_roundoff(x.dtype), atol=atol, equal_nan=True)
    return got


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name_of)
@pytest.mark.parametrize(
    ("batch", "n", "segments", "width"),
    [(1, 1, 1, 1), (2, 33, 6, 31), (1, 24, 3, 1100), (2, 6, 0, 2), (0, 4, 2, 8), (2, 5, 3, 0), (1, 40, 40, 5)],
)
def test_is_close_to_the_reference(
    batch: int, n: int, segments: int, width: int, dtype: torch.dtype, merge: str
) -> None:
    csr = tuple(t[:batch] for t in plan(n, segments, max(batch, 1), dropped=n // 9))
    assert_close((torch.randn(batch, n, width) * 3 + 1).to(dtype), csr, merge=merge)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_segment_of_one_is_copied_bit_for_bit_and_an_empty_one_is_zero(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).smallest_normal / 4, torch.finfo(dtype).max
    x = torch.tensor([[-0.0, tiny, huge, math.inf, 1 / 3], [0.1, -huge, -math.inf, 7.0, -tiny]], dtype=dtype)
    perm, offsets, none = torch.tensor([1, 0]), torch.tensor([0, 1, 1, 2]), torch.tensor([-1, -1, -1])
    for y in (
        launch("segment_mean", x, perm, offsets),
        launch("segment_mean", x, perm, offsets, none, torch.zeros(3, dtype=torch.bool), merge="anchor_plus_mean"),
    ):
        assert torch.equal(y[0], x[1]) and torch.equal(y[2], x[0]) and y[1].tolist() == [0.0] * 5
        assert math.copysign(1, y[2, 0]) == -1


def test_a_merged_token_of_one_member_is_twice_itself() -> None:
    x = torch.tensor([[1.0], [3.0], [10.0]])
    csr = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3]), torch.tensor([1, 2]), torch.tensor([True, True])
    assert launch("segment_mean", x, *csr, merge="anchor_plus_mean").tolist() == [[5.0], [20.0]]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 3e38), (torch.bfloat16, 3e38), (torch.float16, 6e4), (torch.float32, 1e-42)]
)
def test_sums_that_leave_the_range_come_back_into_it(dtype: torch.dtype, value: float, merge: str) -> None:
    x = torch.full((1, 13, 4), value).to(dtype)
    x[:, :, 1] *= -1
    x[:, ::2, 2] *= -1
    assert_close(x, plan(13, 4, 1), merge=merge)


@pytest.mark.parametrize("merge", MERGES)
def test_nan_and_inf_stay_in_their_segment(merge: str) -> None:
    x = torch.randn(1, 12, 6)
    x[0, 1, 1], x[0, 4, 2], x[0, 5, 2], x[0, 9, 3] = math.nan, math.inf, -math.inf, math.inf
    perm, offsets = torch.arange(12)[None], torch.tensor([[0, 3, 6, 9, 12]])
    y = assert_close(x, (perm, offsets, torch.tensor([[1, 4, 7, 9]]), torch.ones(1, 4, dtype=torch.bool)), merge=merge)
    assert y.isfinite().sum() == 4 * 6 - 3


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_every_layout_gives_the_same_whole_numbers(dtype: torch.dtype) -> None:
    x, csr = torch.randint(-8, 9, (2, 9, 6)).to(dtype) * 12, plan(9, 3, 2)
    lengths = csr[1].diff().clamp(min=1)
    x = x * int(torch.lcm(lengths[0, 0], lengths[1, 1]))
    for _, view in layouts(x):
        assert_exact("segment_mean", view, *csr)
    for _, perm in layouts(csr[0]):
        assert_exact("segment_mean", x, perm, csr[1].t().contiguous().t(), *csr[2:])


def test_indices_out_of_range_are_clamped() -> None:
    x = torch.randn(1, 4, 3)
    perm, offsets = torch.tensor([[-5, 1, 99, 2]]), torch.tensor([[-3, 1, 3, 77]])
    assert_exact("segment_mean", x[..., :1] * 0 + 3, perm, offsets)
    anchors, merged = torch.tensor([[-7, 50, 1]]), torch.ones(1, 3, dtype=torch.bool)
    assert_close(x, (perm, offsets, anchors, merged), merge="anchor_plus_mean")


@pytest.mark.parametrize("merge", MERGES)
def test_a_batch_changes_no_bit(merge: str) -> None:
    csr = plan(21, 5, 3)
    assert_batch_invariant("segment_mean", [torch.randn(3, 21, 33).bfloat16(), *csr], merge=merge)
