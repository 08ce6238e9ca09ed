"""The Triton kernel of compact_sequence: the bits of segment_mean's kernel, and a gather."""

import pytest
import torch
from launchers import both, launch
from segments import plan
from support import LOW_PRECISION, assert_same_bits, expanded, layouts, name_of, tensors

MERGES = ("mean", "anchor_plus_mean")
DTYPES = (torch.float32, *LOW_PRECISION)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("batch", "n", "segments", "width"), [(2, 12, 5, 33), (1, 9, 4, 1100), (0, 3, 2, 4)])
def test_is_segment_mean_and_a_gather(
    batch: int, n: int, segments: int, width: int, dtype: torch.dtype, merge: str
) -> None:
    csr = tuple(t[:batch] for t in plan(n, segments, max(batch, 1), dropped=n // 9))
    x = torch.randn(batch, n, width).to(dtype)
    given = [torch.randn(batch, n, 130).to(dtype), torch.randn(1, n, 2, 3), torch.arange(n)[None]]
    got, want = both("compact_sequence", x, given, *csr, repeat=True, merge=merge)
    assert_same_bits(got[0], launch("segment_mean", x, *csr, merge=merge))
    assert_same_bits(got[1:], tensors(want)[1:])


def test_more_companions_than_one_launch_takes_and_every_size_of_element() -> None:
    csr = plan(7, 4, 2)
    dtypes = (torch.bool, torch.float16, torch.int32, torch.float64, torch.int64, torch.bfloat16)
    given = [(torch.randn(2, 7, k) * 5).to(dtype) for k, dtype in enumerate(dtypes)]
    for count in (0, 1, 4, 5, 6):
        got, want = both("compact_sequence", torch.ones(2, 7, 3), given[:count], *csr)
        assert_same_bits(got, tensors(want))


def test_every_layout_gives_the_same() -> None:
    x, csr = torch.randint(-8, 9, (2, 6, 5)).float(), plan(6, 6, 2)
    given = torch.randn(2, 6, 4), torch.arange(12).view(2, 6)
    for _, view in layouts(x):
        assert_same_bits(*map(tensors, both("compact_sequence", view, list(given), *csr)))
    for _, view in layouts(given[0]):
        assert_same_bits(*map(tensors, both("compact_sequence", x, [view, given[1]], *csr)))
    for _, view in layouts(given[1]):
        assert_same_bits(*map(tensors, both("compact_sequence", x, [given[0], view], *csr)))


def test_every_layout_of_the_plan_gives_the_same() -> None:
    x, csr = torch.randn(2, 9, 5), plan(9, 5, 2)
    given = [torch.randn(2, 9, 4), torch.arange(18).view(2, 9)]
    want = launch("compact_sequence", x, given, *csr, merge="anchor_plus_mean")
    for index in range(4):
        for name, view in layouts(csr[index]):
            varied = (*csr[:index], view, *csr[index + 1 :])
            got, _ = both("compact_sequence", x, given, *varied, merge="anchor_plus_mean")
            assert_same_bits(got, want, f"plan tensor {index} {name}:")
    one = plan(9, 5)
    want = launch("compact_sequence", x, given, *(torch.stack([t, t]) for t in one), merge="anchor_plus_mean")
    got = launch("compact_sequence", x, given, *(expanded(t, 2) for t in one), merge="anchor_plus_mean")
    assert_same_bits(got, want, "one plan expanded:")


def test_without_a_batch_and_with_anchors_out_of_range() -> None:
    x, (perm, offsets, _, _) = torch.ones(6, 3), plan(6, 4)
    anchors = torch.tensor([-1, 99, 2, -7])
    got, want = both("compact_sequence", x, [torch.arange(6)], perm, offsets, anchors)
    assert_same_bits(got[1], tensors(want)[1])
    assert got[1].tolist() == [0, 5, 2, 0]
