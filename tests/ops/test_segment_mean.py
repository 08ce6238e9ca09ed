"""segment_mean: Eq. 6 in plain Python, then the kernel against the float64 reference."""

import math

import pytest
import torch
from segments import plan
from support import (
    FLOATS,
    NATIVE_OPS,
    assert_batch_invariant,
    assert_right,
    both,
    call,
    expanded,
    layouts,
    name_of,
    reference,
    unit_roundoff,
)
from torch import Tensor

MERGES = ("mean", "anchor_plus_mean")


def tolerance(x: Tensor, offsets: Tensor, merge: str) -> tuple[float, float]:
    """One rounding to the dtype; before it a float32 sum of at most `longest` terms, absolute because terms may
    cancel."""
    if x.numel() == 0 or offsets.shape[-1] == 1:
        return 0.0, 0.0
    top = float(x.double().nan_to_num(0, 0, 0).abs().max())
    sums = (2.0**-24 if x.dtype != torch.float64 else 2.0**-53) * (8 + float(offsets.diff().max())) * top
    return 2.01 * unit_roundoff(x.dtype), sums + 2.0**-24 * 2.0**-14 * (x.dtype == torch.float16)


def assert_close(x: Tensor, csr: tuple[Tensor, ...], merge: str) -> Tensor:
    perm, offsets, anchors, merged = csr
    got, want = both("segment_mean", x, perm, offsets, anchors, merged, merge=merge)
    rtol, atol = tolerance(x, offsets, merge)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
    return got


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(("n", "segments", "width"), [(1, 1, 1), (9, 4, 3), (12, 12, 2), (7, 1, 5), (6, 0, 2)])
def test_is_equation_6(n: int, segments: int, width: int, dtype: torch.dtype, merge: str) -> None:
    x, csr = torch.randn(n, width).to(dtype), plan(n, segments, dropped=n // 5)
    assert_right("segment_mean", x, *csr, merge=merge)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(
    ("batch", "n", "segments", "width"),
    [
        (1, 1, 1, 1),
        (2, 2, 3, 17),
        (3, 33, 10, 31),
        (2, 288, 253, 256),
        (1, 576, 77, 1000),
        (0, 4, 2, 8),
        (2, 5, 3, 0),
        (1, 345, 310, 4096),
    ],
)
def test_is_close_to_the_reference(
    batch: int, n: int, segments: int, width: int, dtype: torch.dtype, merge: str
) -> None:
    csr = plan(n, segments, max(batch, 1), dropped=n // 9)
    csr = tuple(t[:batch] for t in csr)
    x = (torch.randn(batch, n, width) * 3 + 1).to(dtype)
    y = assert_close(x, csr, merge)
    assert y.shape == (batch, segments, width)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_segment_of_one_is_copied_bit_for_bit_and_an_empty_one_is_zero(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).smallest_normal / 4, torch.finfo(dtype).max
    x = torch.tensor([[-0.0, tiny, huge, math.inf, 1 / 3], [0.1, -huge, -math.inf, 7.0, -tiny]], dtype=dtype)
    perm, offsets = torch.tensor([1, 0]), torch.tensor([0, 1, 1, 2])
    y = call("segment_mean", x, perm, offsets)
    assert torch.equal(y[0], x[1]) and torch.equal(y[2], x[0]) and y[1].tolist() == [0.0] * 5
    assert math.copysign(1, y[2, 0]) == -1
    y = call(
        "segment_mean",
        x,
        perm,
        offsets,
        torch.tensor([-1, -1, -1]),
        torch.zeros(3, dtype=torch.bool),
        merge="anchor_plus_mean",
    )
    assert torch.equal(y[0], x[1]) and torch.equal(y[2], x[0])


def test_merged_tokens_of_the_release_are_anchor_plus_mean() -> None:
    x = torch.tensor([[1.0], [3.0], [10.0]])
    csr = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3]), torch.tensor([1, 2]), torch.tensor([True, False])
    assert call("segment_mean", x, *csr, merge="mean").tolist() == [[2.0], [10.0]]
    assert call("segment_mean", x, *csr, merge="anchor_plus_mean").tolist() == [[5.0], [10.0]]
    alone = csr[0], csr[1], csr[2], torch.tensor([True, True])  # a remainder of one is merged too
    assert call("segment_mean", x, *alone, merge="anchor_plus_mean").tolist() == [[5.0], [20.0]]
    empty = csr[0], torch.tensor([0, 0, 3]), torch.tensor([2, 0]), torch.tensor([True, False])
    for run in (call, reference):
        assert run("segment_mean", x, *empty, merge="anchor_plus_mean")[0].tolist() == [10.0]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, 3e38),
        (torch.bfloat16, 3e38),
        (torch.float16, 6e4),
        (torch.float32, 1e-30),
        (torch.float32, 1e-44),
    ],
)
def test_sums_that_leave_the_range_come_back_into_it(dtype: torch.dtype, value: float, merge: str) -> None:
    x = torch.full((10, 19), value).to(dtype)
    csr = torch.arange(10), torch.tensor([0, 7, 10]), torch.tensor([3, 8]), torch.tensor([False, False])
    y = assert_close(x, csr, merge)
    # At most one ulp from the value: the division by 7 rounds once.
    torch.testing.assert_close(y, x[:2], rtol=2 * unit_roundoff(dtype), atol=0)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_nan_and_inf_stay_in_their_segment(dtype: torch.dtype, merge: str) -> None:
    x = torch.randn(12, 21).to(dtype)
    x[1, 3], x[4, 5], x[5, 5], x[9, 20] = math.nan, math.inf, -math.inf, math.inf
    csr = (
        torch.arange(12),
        torch.tensor([0, 3, 6, 9, 12]),
        torch.tensor([0, 4, 7, 10]),
        torch.tensor([True, True, True, True]),
    )
    y = assert_close(x, csr, merge)
    assert y[0].isnan().nonzero().flatten().tolist() == [3] and y[2].isfinite().all()
    assert y[3, 20] == math.inf and y[1, 5].isnan()


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("merge", MERGES)
def test_whole_numbers_are_exact_in_every_layout(dtype: torch.dtype, merge: str) -> None:
    x = torch.randint(-8, 9, (2, 16, 40)).to(dtype)
    perm = torch.stack([torch.randperm(16), torch.randperm(16)])
    offsets = torch.tensor([[0, 1, 3, 7, 15, 16], [0, 4, 4, 5, 7, 15]])
    anchors = perm.gather(1, offsets[:, :-1].clamp(max=15))
    merged = offsets.diff() > 1
    want = reference("segment_mean", x, perm, offsets, anchors, merged, merge=merge)
    for name, view in layouts(x):
        assert torch.equal(call("segment_mean", view, perm, offsets, anchors, merged, merge=merge), want), name
    for index, argument in enumerate((perm, offsets, anchors, merged)):
        for name, view in layouts(argument):
            csr = [perm, offsets, anchors, merged]
            csr[index] = view
            assert torch.equal(call("segment_mean", x, *csr, merge=merge), want), (name, index)
    same = [expanded(t[0], 3) for t in (x, perm, offsets, anchors, merged)]
    assert torch.equal(call("segment_mean", *same, merge=merge), want[:1].expand(3, -1, -1))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_batch_and_threads_change_nothing(dtype: torch.dtype, merge: str) -> None:
    x = torch.randn(3, 90, 65).to(dtype)
    assert_batch_invariant("segment_mean", [x, *plan(90, 30, 3)], samples=3, merge=merge)


BAD_INDICES = {
    "perm too large": (dict(perm=torch.tensor([0, 1, 4])), "perm"),
    "perm negative": (dict(perm=torch.tensor([0, -1, 2])), "perm"),
    "offsets descending": (dict(offsets=torch.tensor([0, 3, 1])), "offsets"),
    "offsets negative": (dict(offsets=torch.tensor([-1, 1, 3])), "offsets"),
    "offsets too large": (dict(offsets=torch.tensor([0, 1, 4])), "offsets"),
    "anchors too large": (dict(anchors=torch.tensor([0, 3])), "anchors"),
    "anchors negative where merged": (dict(anchors=torch.tensor([0, -1])), "anchors"),
}


@pytest.mark.parametrize(("change", "argument"), BAD_INDICES.values(), ids=BAD_INDICES.keys())
def test_bad_indices_raise_in_the_kernel_and_are_clamped_in_the_reference(change: dict, argument: str) -> None:
    csr = dict(
        perm=torch.arange(3),
        offsets=torch.tensor([0, 1, 3]),
        anchors=torch.tensor([0, 2]),
        merged=torch.tensor([False, True]),
    )
    csr |= change
    x = torch.ones(3, 5)
    if "segment_mean" in NATIVE_OPS:
        with pytest.raises(ValueError, match=f"^segment_mean: {argument}: expected .*, got -?\\d+"):
            call("segment_mean", x, *csr.values(), merge="anchor_plus_mean")
    y = reference("segment_mean", x, *csr.values(), merge="anchor_plus_mean")
    assert y.shape == (2, 5) and y.isfinite().all()
