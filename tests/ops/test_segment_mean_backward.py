"""segment_mean_backward: the transpose of segment_mean, whose matrix the float64 reference gives column by column."""

import math

import pytest
import torch
from segments import plan
from support import (
    FLOATS,
    NATIVE_OPS,
    assert_batch_invariant,
    assert_exact,
    call,
    layouts,
    name_of,
    reference,
    unit_roundoff,
)
from torch import Tensor

MERGES = ("mean", "anchor_plus_mean")


def transposed(grad: Tensor, csr: tuple[Tensor, ...], merge: str) -> Tensor:
    """The matrix of segment_mean, transposed, times `grad`; no batch."""
    identity = torch.eye(csr[0].shape[-1], dtype=torch.float64)
    return (reference("segment_mean", identity, *csr, merge=merge).T @ grad.double()).to(grad.dtype)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(("n", "segments", "width"), [(1, 1, 1), (9, 4, 3), (12, 12, 2), (40, 9, 700), (6, 0, 2)])
def test_is_the_transpose_of_segment_mean(n: int, segments: int, width: int, dtype: torch.dtype, merge: str) -> None:
    csr = plan(n, segments, dropped=n // 5)
    grad = torch.randn(segments, width).to(dtype)
    want = transposed(grad, csr, merge)
    for run in (reference, call):
        got = run("segment_mean_backward", grad, *csr, merge=merge)
        assert got.shape == (n, width) and got.dtype == dtype
        # Two roundings to the dtype: of the quotient in this test's matrix, and of the result.
        torch.testing.assert_close(got, want, rtol=2.01 * unit_roundoff(dtype), atol=0)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_equals_the_reference_in_every_layout(dtype: torch.dtype, merge: str) -> None:
    csr = plan(30, 11, 2, dropped=3)
    grad = torch.randn(2, 11, 37).to(dtype)
    want = assert_exact("segment_mean_backward", grad, *csr, merge=merge)
    for name, view in layouts(grad):
        assert torch.equal(call("segment_mean_backward", view, *csr, merge=merge), want), name
    for index in range(4):
        for name, view in layouts(csr[index]):
            changed = [*csr[:index], view, *csr[index + 1 :]]
            assert torch.equal(call("segment_mean_backward", grad, *changed, merge=merge), want), (name, index)


@pytest.mark.parametrize("merge", MERGES)
def test_repeated_tokens_and_anchors_sum_their_shares(merge: str) -> None:
    perm, offsets = torch.tensor([2, 2, 0, 2, 1, 0]), torch.tensor([0, 2, 3, 5, 5])
    csr = perm, offsets, torch.tensor([0, 0, 5, 1]), torch.tensor([True, True, False, True])
    grad = torch.randn(4, 9)
    got = assert_exact("segment_mean_backward", grad, *csr, merge=merge)
    torch.testing.assert_close(got, transposed(grad, csr, merge), rtol=1e-6, atol=1e-6)  # a handful of float32 terms
    assert got[3:].eq(0).all()


def test_nan_and_inf_reach_the_members_of_their_segment_alone() -> None:
    grad = torch.ones(3, 4)
    grad[0, 1], grad[2, 2] = math.nan, -math.inf
    perm, offsets = torch.tensor([3, 0, 4, 1, 2, 5]), torch.tensor([0, 2, 3, 5])
    got = assert_exact_nan(grad, perm, offsets)
    assert got.isnan().nonzero().tolist() == [[0, 1], [3, 1]]
    assert got.isinf().nonzero().tolist() == [[1, 2], [2, 2]] and got[5].eq(0).all()


def assert_exact_nan(grad: Tensor, perm: Tensor, offsets: Tensor) -> Tensor:
    got, want = (run("segment_mean_backward", grad, perm, offsets) for run in (call, reference))
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    return got


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_batch_and_threads_change_nothing(dtype: torch.dtype) -> None:
    csr = plan(90, 30, 3)
    assert_batch_invariant(
        "segment_mean_backward", [torch.randn(3, 30, 65).to(dtype), *csr], samples=3, merge="anchor_plus_mean"
    )


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        (dict(perm=torch.tensor([0, 1, 4])), "perm"),
        (dict(offsets=torch.tensor([0, 3, 1])), "offsets"),
        (dict(anchors=torch.tensor([0, -1])), "anchors"),
    ],
)
def test_what_segment_mean_refuses_is_refused_and_clamped_in_the_reference(change: dict, argument: str) -> None:
    csr = dict(
        perm=torch.arange(3),
        offsets=torch.tensor([0, 1, 3]),
        anchors=torch.tensor([0, 2]),
        merged=torch.tensor([False, True]),
    )
    csr |= change
    if "segment_mean_backward" in NATIVE_OPS:
        with pytest.raises(ValueError, match=f"^segment_mean_backward: {argument}: expected .*, got -?\\d+"):
            call("segment_mean_backward", torch.ones(2, 5), *csr.values(), merge="anchor_plus_mean")
    x = reference("segment_mean_backward", torch.ones(2, 5), *csr.values(), merge="anchor_plus_mean")
    assert x.shape == (3, 5) and x.isfinite().all()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_is_what_autograd_calls(dtype: torch.dtype, merge: str) -> None:
    csr = plan(20, 7, 2)
    x, grad = torch.randn(2, 20, 6).to(dtype).requires_grad_(), torch.randn(2, 7, 6).to(dtype)
    torch.ops.vitcop.segment_mean(x, *csr, merge=merge).backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, call("segment_mean_backward", grad, *csr, merge=merge))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("namespace", ["vitcop", "vitcop_reference"])
def test_gradients_of_the_gradient(namespace: str, merge: str) -> None:
    csr = plan(9, 4, 2)
    op = getattr(torch.ops, namespace)
    grad = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: op.segment_mean_backward(g, *csr, merge=merge), grad)
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: op.segment_mean(x, *csr, merge=merge), x)
