"""expand_plan: from a plan for the visual tokens to the plan of the whole sequence."""

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register

from . import reference

OP = "expand_plan"
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def check(
    slots: Tensor,
    anchors: Tensor,
    perm: Tensor | None = None,
    offsets: Tensor | None = None,
    merged: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    num_slots: int,
    out_len: int,
) -> None:
    checks.dtype_is(OP, "slots", slots, torch.int64)
    checks.dims(OP, "slots", slots, 1, 2, layout="[B, V] or [V]")
    batch, segments = tuple(slots.shape[:-1]), anchors.shape[-1] if anchors.dim() else 0
    checks.dtype_is(OP, "anchors", anchors, torch.int64)
    checks.same_device(OP, "anchors", anchors, "slots", slots.device)
    checks.dims(OP, "anchors", anchors, slots.dim(), layout="[B, S] or [S], as slots")
    checks.shape_is(OP, "anchors", anchors, (*batch, segments))
    checks.at_least(OP, "num_slots", num_slots, 0)
    checks.in_range(OP, "out_len", out_len, 0, num_slots)
    if perm is not None and offsets is None:
        checks.fail(OP, "offsets", "a tensor with perm", None)
    if offsets is not None and perm is None:
        checks.fail(OP, "perm", "a tensor with offsets", None)
    parts = (
        ("perm", perm, torch.int64, slots.shape[-1]),
        ("offsets", offsets, torch.int64, segments + 1),
        ("merged", merged, torch.bool, segments),
        ("valid", valid, torch.bool, num_slots),
    )
    for name, t, dtype, length in parts:
        if t is not None:
            checks.dtype_is(OP, name, t, dtype)
            checks.same_device(OP, name, t, "slots", slots.device)
            checks.shape_is(OP, name, t, (*batch, length))


def _fake(
    slots: Tensor,
    anchors: Tensor,
    perm: Tensor | None = None,
    offsets: Tensor | None = None,
    merged: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    num_slots: int,
    out_len: int,
) -> Outputs:
    batch = slots.shape[:-1]

    def index(length: int) -> Tensor:
        return slots.new_empty((*batch, length))

    flags = slots.new_empty((*batch, out_len), dtype=torch.bool)
    segments = anchors.shape[-1]
    return (
        index(num_slots),
        index(out_len + 1),
        index(out_len),
        flags,
        index(num_slots),
        index(segments),
        index(out_len + 1),
    )


register(
    "expand_plan(Tensor slots, Tensor anchors, Tensor? perm=None, Tensor? offsets=None, Tensor? merged=None, "
    "Tensor? valid=None, *, SymInt num_slots, SymInt out_len) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    check=check,
    reference=reference.expand_plan,
    fake=_fake,
    cuda="vitcop_kernels.ops.expand_plan.kernel",
    indices_only=True,
)


def expand_plan(
    slots: Tensor,
    anchors: Tensor,
    *,
    perm: Tensor | None = None,
    offsets: Tensor | None = None,
    merged: Tensor | None = None,
    valid: Tensor | None = None,
    num_slots: int,
    out_len: int,
) -> Outputs:
    """Make the plan of a whole sequence of `n = num_slots` slots out of a plan for the V visual tokens in it.

    Slots that hold no visual token become segments of one, so that the result compacts the sequence to `n' = out_len`
    slots by `segment_mean` or `compact_sequence`. New slots are in the order of their anchors; a sample with fewer of
    them is padded in front. On a GPU one launch, by counting, without a sort.

    Samples of a batch may differ in the number of their visual tokens and segments: -1 in `slots` and `anchors` stands
    for a token or segment that is not there.

    Args:
        slots: `[B, V]` or `[V]` int64, the slot of each visual token, each in `[0, n)` and once; -1: no token.
        anchors: `[B, S]` int64, the visual token whose place a segment takes, a member of it; -1: no segment.
        perm: `[B, V]` and offsets: `[B, S+1]` int64, the members of every segment, as `plan_tokens` makes them; None:
            the anchors are kept, each alone, and the other visual tokens are dropped.
        merged: `[B, S]` bool, handed on; None: False.
        valid: `[B, n]` bool, False for padding, which goes as well; None: no padding.
        num_slots: n. out_len: n', in `[0, n]`, at least the number of new slots of every sample.

    On the CPU other values raise ValueError; on a GPU, where looking would cost a host sync, the result is unspecified
    but its indices are in range.

    Returns:
        perm: `[B, n]` int64, the members of each segment in the order of the plan; slots of no segment last, ascending.
        offsets: `[B, n'+1]` int64. Padding is empty segments.
        anchors: `[B, n']` int64, the slot whose place a new slot takes; -1 for padding.
        merged: `[B, n']` bool.
        column: `[B, n]` int64, the new slot of each slot, n' for those that go.
        slots: `[B, S]` int64, the new slot of each segment of the plan; -1: no segment.
        removed: `[B, n'+1]` int64, how many visual tokens that do not stay come before a new slot; in the last column
            all of them.

    Raises:
        ValueError, TypeError: shapes that do not fit, one of `perm` and `offsets` without the other, other dtypes.

    The result is indices: nothing to differentiate.
    """
    return torch.ops.vitcop.expand_plan(
        slots, anchors, perm, offsets, merged, valid, num_slots=num_slots, out_len=out_len
    )
