"""compact_sequence: segment_mean for the hidden states, a gather by anchor for what belongs to their slots."""

import math

import pytest
import torch
from segments import plan
from support import FLOATS, NATIVE_OPS, assert_same_bits, call, layouts, name_of, reference, tensors
from torch import Tensor

MERGES = ("mean", "anchor_plus_mean")
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.bool)


def companions(batch: int, n: int) -> list[Tensor]:
    """One of every dtype, of every number of dimensions, of a batch of its own or shared."""
    shapes = [(batch, n, 6), (1, n, 6), (batch, n), (1, n), (batch, n, 2, 3), (1, n, 0), (batch, n, 1)]
    return [(torch.randn(s) * 9).to(dtype) for s, dtype in zip(shapes, DTYPES, strict=True)]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(("batch", "n", "segments"), [(1, 1, 1), (3, 12, 5), (1, 90, 40), (2, 4, 0)])
def test_is_segment_mean_and_a_gather(batch: int, n: int, segments: int, dtype: torch.dtype, merge: str) -> None:
    x, csr = torch.randn(batch, n, 33).to(dtype), plan(n, segments, batch, dropped=n // 5)
    given = companions(batch, n)
    for namespace, run in (("vitcop", call), ("vitcop_reference", reference)):
        y, gathered = run("compact_sequence", x, given, *csr, merge=merge)
        assert_same_bits(y, getattr(torch.ops, namespace).segment_mean(x, *csr, merge=merge))
        for before, after in zip(given, gathered, strict=True):
            assert (after.shape, after.dtype) == ((batch, segments, *before.shape[2:]), before.dtype)
            for b in range(batch):
                index = csr[2][b].clamp(min=0)  # padding takes the first row
                assert_same_bits(after[b], before[b if before.shape[0] > 1 else 0][index])


def test_a_sample_alone_is_the_sample_in_a_batch() -> None:
    x, csr = torch.randn(2, 20, 7), plan(20, 9, 2)
    given = [torch.randn(2, 20, 3), torch.arange(40).view(2, 20)]
    whole = call("compact_sequence", x, given, *csr)
    for b in range(2):
        alone = call("compact_sequence", x[b], [t[b] for t in given], *(t[b] for t in csr))
        assert_same_bits(tensors(alone), [t[b] for t in tensors(whole)])


def test_bits_survive_that_arithmetic_would_lose() -> None:
    odd = torch.tensor([math.nan, -0.0, math.inf, 1e-45]).view(4, 1)
    x, csr = torch.randn(4, 2), (torch.arange(4), torch.arange(5), torch.arange(4).flip(0))
    assert_same_bits(call("compact_sequence", x, [odd], *csr)[1][0], odd.flip(0))


def test_every_layout_gives_the_same() -> None:
    x, csr = torch.randint(-8, 9, (2, 16, 40)).float(), plan(16, 16, 2)
    given = [torch.randn(2, 16, 6), torch.arange(32).view(2, 16)]
    want = tensors(call("compact_sequence", x, given, *csr))
    for name, view in layouts(x):
        assert_same_bits(tensors(call("compact_sequence", view, given, *csr)), want, name)
    for k in range(2):
        for name, view in layouts(given[k]):
            changed = [view if i == k else t for i, t in enumerate(given)]
            assert_same_bits(tensors(call("compact_sequence", x, changed, *csr)), want, f"companion {k}, {name}")
    for name, view in layouts(csr[2]):
        assert_same_bits(tensors(call("compact_sequence", x, given, *csr[:2], view, csr[3])), want, name)


@pytest.mark.parametrize("bad", [-2, 4])
def test_anchors_out_of_range_raise_in_the_kernel_and_are_clamped_in_the_reference(bad: int) -> None:
    args = torch.ones(4, 3), [torch.arange(4)], torch.arange(4), torch.tensor([0, 1, 4]), torch.tensor([0, bad])
    if "compact_sequence" in NATIVE_OPS:
        with pytest.raises(ValueError, match=rf"^compact_sequence: anchors: expected .*, got {bad}$"):
            call("compact_sequence", *args)
    assert reference("compact_sequence", *args)[1][0].tolist() == [0, max(0, min(bad, 3))]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("namespace", ["vitcop", "vitcop_reference"])
def test_the_gradient_is_that_of_segment_mean(namespace: str, merge: str) -> None:
    csr = plan(9, 4, 2)
    given = [torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True), torch.arange(9)[None]]
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    op = getattr(torch.ops, namespace).compact_sequence
    assert torch.autograd.gradcheck(lambda x: op(x, given, *csr, merge=merge)[0], x)
    if merge == "mean":
        assert torch.autograd.gradcheck(lambda x: op(x, given, *csr[:3])[0], x)
    y, gathered = op(x, given, *csr, merge=merge)
    assert y.requires_grad and not any(t.requires_grad for t in gathered)
