"""compact_sequence: shorten a sequence, hidden states and all that belongs to their slots, in one launch."""

from typing import Any

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels.ops.segment_mean.op import check_segments

from . import reference

OP = "compact_sequence"


def check_companions(op: str, companions: list[Tensor], x: Tensor) -> None:
    n, lead = x.shape[-2], x.dim() - 1
    batch = "" if lead == 1 else "1, " if x.shape[0] == 1 else f"{x.shape[0]} or 1, "
    for k, t in enumerate(companions):
        if t.dtype not in (*checks.FLOATS, *checks.INTS, torch.bool):
            got = str(t.dtype).removeprefix("torch.")
            raise TypeError(f"{op}: companions[{k}]: expected a floating dtype, int64, int32 or bool, got {got}")
        checks.same_device(op, f"companions[{k}]", t, "x", x.device)
        if t.dim() < lead or t.shape[lead - 1] != n or (lead == 2 and t.shape[0] not in (1, x.shape[0])):
            checks.fail(op, f"companions[{k}]", f"[{batch}{n}, ...]", checks.shape_of(t))


def check(
    x: Tensor,
    companions: list[Tensor],
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> None:
    check_segments(OP, x, perm, offsets, anchors, merged, merge)
    check_companions(OP, companions, x)


def _fake(
    x: Tensor,
    companions: list[Tensor],
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> tuple[Tensor, list[Tensor]]:
    lead = x.dim() - 1
    y = x.new_empty((*x.shape[:-2], anchors.shape[-1], x.shape[-1]))
    return y, [t.new_empty((*anchors.shape, *t.shape[lead:])) for t in companions]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    _, companions, perm, offsets, anchors, merged = inputs
    added = keyword_only_inputs["merge"] == "anchor_plus_mean"
    ctx.save_for_backward(perm, offsets, anchors if added else None, merged if added else None)
    ctx.merge, ctx.count = keyword_only_inputs["merge"], len(companions)
    ctx.mark_non_differentiable(*output[1])


def _backward(ctx: Any, grad: Tensor, grads: Any) -> tuple[Any, ...]:
    of_x = torch.ops.vitcop.segment_mean_backward(grad, *ctx.saved_tensors, merge=ctx.merge)
    given = len(ctx.needs_input_grad)  # the dispatcher leaves out `merged` where it is None
    return of_x, [None] * ctx.count, *[None] * (given - 2)


register(
    "compact_sequence(Tensor x, Tensor[] companions, Tensor perm, Tensor offsets, Tensor anchors, "
    'Tensor? merged=None, *, str merge="mean") -> (Tensor, Tensor[])',
    check=check,
    reference=reference.compact_sequence,
    fake=_fake,
    cuda="vitcop_kernels.ops.compact_sequence.kernel",
    backward=_backward,
    setup_context=_setup_context,
)


def compact_sequence(
    x: Tensor,
    companions: list[Tensor],
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    *,
    merged: Tensor | None = None,
    merge: str = "mean",
) -> tuple[Tensor, list[Tensor]]:
    """Shorten a sequence: hidden states by `segment_mean` (Eq. 6), what else belongs to a slot by anchor.

    `y[s] = mean(x[perm[offsets[s]:offsets[s+1]]])` and `companion'[s] = companion[anchors[s]]`: a merged token takes
    the rotation, the position id and the like of its anchor. On a GPU one launch for up to four companions.

    Args:
        x: `[B, n, C]` or `[n, C]`, float32, bfloat16 or float16, any strides.
        companions: `[B, n, ...]` or `[1, n, ...]` each (`[n, ...]` without a batch), of any floating dtype, int64,
            int32 or bool, such as cos, sin and position ids.
        perm, offsets, merged, merge: as `segment_mean` takes them.
        anchors: `[B, n']` or `[n']` int64, as `expand_plan` makes them; where -1 (padding), a companion's first row is
            copied. On the CPU other values outside `[0, n)` raise ValueError; on a GPU they are clamped.

    Returns:
        y `[B, n', C]` as `segment_mean` gives it, and the companions `[B, n', ...]`, bit for bit.

    Raises:
        ValueError, TypeError: shapes that do not fit, unknown options, dtypes other than the above.

    Differentiable with respect to `x`; companions have no gradient.
    """
    return torch.ops.vitcop.compact_sequence(x, companions, perm, offsets, anchors, merged, merge=merge)
