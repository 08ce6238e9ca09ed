"""segment_mean: merge the tokens of each segment (Eq. 6); compacts whole sequences."""

from typing import Any

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register

from . import reference

OP = "segment_mean"


def check_segments(
    op: str, x: Tensor, perm: Tensor, offsets: Tensor, anchors: Tensor | None, merged: Tensor | None, merge: str
) -> None:
    """Tokens `x` and a plan of segments for them."""
    checks.floating(op, "x", x)
    checks.dims(op, "x", x, 2, 3, layout="[B, N, C] or [N, C]")
    checks.at_least(op, "x.shape[-2] (tokens)", x.shape[-2], 1)
    checks.dtype_is(op, "perm", perm, torch.int64)
    checks.same_device(op, "perm", perm, "x", x.device)
    checks.shape_is(op, "perm", perm, tuple(x.shape[:-1]))
    checks.dtype_is(op, "offsets", offsets, torch.int64)
    checks.same_device(op, "offsets", offsets, "x", x.device)
    checks.dims(op, "offsets", offsets, perm.dim(), layout="[B, S+1] or [S+1], as perm")
    checks.at_least(op, "offsets.shape[-1] (S+1)", offsets.shape[-1], 1)
    checks.shape_is(op, "offsets", offsets, (*perm.shape[:-1], offsets.shape[-1]))
    segments = (*perm.shape[:-1], offsets.shape[-1] - 1)
    checks.anchors_for(op, merge, anchors, merged, segments, "x", x.device)


def check(
    x: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> None:
    check_segments(OP, x, perm, offsets, anchors, merged, merge)


def _fake(
    x: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> Tensor:
    return x.new_empty((*x.shape[:-2], offsets.shape[-1] - 1, x.shape[-1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    _, perm, offsets, anchors, merged = inputs
    added = keyword_only_inputs["merge"] == "anchor_plus_mean"
    ctx.save_for_backward(perm, offsets, anchors if added else None, merged if added else None)
    ctx.merge = keyword_only_inputs["merge"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x = torch.ops.vitcop.segment_mean_backward(grad, *ctx.saved_tensors, merge=ctx.merge)
    return of_x, None, None, None, None


register(
    "segment_mean(Tensor x, Tensor perm, Tensor offsets, Tensor? anchors=None, Tensor? merged=None, *, "
    'str merge="mean") -> Tensor',
    check=check,
    reference=reference.segment_mean,
    fake=_fake,
    cuda="vitcop_kernels.ops.segment_mean.kernel",
    backward=_backward,
    setup_context=_setup_context,
)


def segment_mean(
    x: Tensor,
    perm: Tensor,
    offsets: Tensor,
    *,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    merge: str = "mean",
) -> Tensor:
    """Average the tokens of every segment (Eq. 6): `y[s] = mean(x[perm[offsets[s]:offsets[s+1]]])`.

    A segment of one is copied bit for bit, so one call compacts a whole sequence whose text tokens are segments of
    one. An empty segment gives 0.

    Args:
        x: `[B, N, C]` or `[N, C]`, float32, bfloat16 or float16, any strides.
        perm: `[B, N]` int64 in `[0, N)`; offsets: `[B, S+1]` int64, ascending in `[0, N]`; as `plan_tokens` makes
            them. On the CPU other values raise ValueError; on a GPU, where looking would cost a host sync, they are
            clamped.
        anchors: `[B, S]` int64 and merged: `[B, S]` bool, needed by "anchor_plus_mean" alone.
        merge: "mean" (Eq. 6), or "anchor_plus_mean" as the authors released it: `y[s] = x[anchors[s]] + mean` where
            merged, which about doubles the norm of a merged token.

    Returns:
        `[B, S, C]` or `[S, C]` in the dtype of `x`; sums in float32 or better, the same bits on every run. NaN and
        inf stay in their segment.

    Raises:
        ValueError, TypeError: shapes that do not fit, unknown options, dtypes other than the above.

    Differentiable with respect to `x`, see `segment_mean_backward`.
    """
    return torch.ops.vitcop.segment_mean(x, perm, offsets, anchors, merged, merge=merge)
