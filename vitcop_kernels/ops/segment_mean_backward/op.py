"""segment_mean_backward: the gradient of segment_mean with respect to its tokens."""

from typing import Any

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register

from . import reference

OP = "segment_mean_backward"


def check(
    grad: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> None:
    checks.floating(OP, "grad", grad)
    checks.dims(OP, "grad", grad, 2, 3, layout="[B, S, C] or [S, C]")
    checks.dtype_is(OP, "perm", perm, torch.int64)
    checks.same_device(OP, "perm", perm, "grad", grad.device)
    checks.dims(OP, "perm", perm, grad.dim() - 1, layout="[B, N] or [N], as grad")
    checks.at_least(OP, "perm.shape[-1] (tokens)", perm.shape[-1], 1)
    checks.shape_is(OP, "perm", perm, (*grad.shape[:-2], perm.shape[-1]))
    segments = tuple(grad.shape[:-1])
    checks.dtype_is(OP, "offsets", offsets, torch.int64)
    checks.same_device(OP, "offsets", offsets, "grad", grad.device)
    checks.shape_is(OP, "offsets", offsets, (*segments[:-1], segments[-1] + 1))
    checks.anchors_for(OP, merge, anchors, merged, segments, "grad", grad.device)


def _fake(
    grad: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> Tensor:
    return grad.new_empty((*perm.shape, grad.shape[-1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.merge = keyword_only_inputs["merge"]


def _backward(ctx: Any, of_x: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.vitcop.segment_mean(of_x, *ctx.saved_tensors, merge=ctx.merge), None, None, None, None


register(
    "segment_mean_backward(Tensor grad, Tensor perm, Tensor offsets, Tensor? anchors=None, Tensor? merged=None, *, "
    'str merge="mean") -> Tensor',
    check=check,
    reference=reference.segment_mean_backward,
    fake=_fake,
    cuda="vitcop_kernels.ops.segment_mean_backward.kernel",
    backward=_backward,
    setup_context=_setup_context,
)


def segment_mean_backward(
    grad: Tensor,
    perm: Tensor,
    offsets: Tensor,
    *,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    merge: str = "mean",
) -> Tensor:
    """Gradient of `segment_mean` with respect to `x`: every member of segment s gets `grad[s] / |segment s|`.

    With "anchor_plus_mean" the anchor of a merged segment gets `grad[s]` besides; a token of no segment gets 0. Made of
    gathers alone, without atomics: the same bits on every run.

    Args:
        grad: `[B, S, C]` or `[S, C]`, float32, bfloat16 or float16, any strides.
        perm, offsets, anchors, merged, merge: as `segment_mean` got them. Where `perm` names a token twice or two
            segments add the same anchor, the shares are summed (in float32 or better). On the CPU values that
            `segment_mean` refuses raise ValueError; on a GPU they are clamped.

    Returns:
        `[B, N, C]` or `[N, C]` in the dtype of `grad`.

    Raises:
        ValueError, TypeError: shapes that do not fit, unknown options, dtypes other than the above.

    Differentiable with respect to `grad` (it is linear, and `segment_mean` is its transpose).
    """
    return torch.ops.vitcop.segment_mean_backward(grad, perm, offsets, anchors, merged, merge=merge)
