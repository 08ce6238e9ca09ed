"""prune_sequence: a whole pruning stage after its scores, in one call."""

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels.ops.compact_sequence.op import check_companions

from . import reference
from .reference import Outputs

OP = "prune_sequence"


def check(
    x: Tensor,
    companions: list[Tensor],
    slots: Tensor,
    scores: Tensor,
    budget: int,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    num_clusters: int = 0,
    quota: str = "exact",
    merge: str = "mean",
    largest: bool = False,
    out_len: int,
) -> None:
    checks.floating(OP, "x", x)
    checks.dims(OP, "x", x, 2, 3, layout="[B, n, C] or [n, C]")
    checks.at_least(OP, "x.shape[-2] (tokens)", x.shape[-2], 1)
    check_companions(OP, companions, x)
    checks.dtype_is(OP, "slots", slots, torch.int64)
    checks.same_device(OP, "slots", slots, "x", x.device)
    checks.dims(OP, "slots", slots, x.dim() - 1, layout="[B, V] or [V], as x")
    checks.shape_is(OP, "slots", slots, (*x.shape[:-2], slots.shape[-1]))
    checks.floating(OP, "scores", scores)
    checks.same_device(OP, "scores", scores, "x", x.device)
    checks.shape_is(OP, "scores", scores, tuple(slots.shape))
    checks.one_of(OP, "quota", quota, "exact", "floor", "released")
    checks.one_of(OP, "merge", merge, "mean", "anchor_plus_mean")
    if labels is None:
        checks.in_range(OP, "budget", budget, 0, slots.shape[-1])
    else:
        checks.dtype_is(OP, "labels", labels, *checks.INTS)
        checks.same_device(OP, "labels", labels, "x", x.device)
        checks.shape_is(OP, "labels", labels, tuple(slots.shape))
        checks.at_least(OP, "num_clusters", num_clusters, 1)
        checks.at_least(OP, "budget", budget, 1)
        if largest:
            checks.fail(OP, "largest", "False with labels", True)
    if valid is not None:
        checks.dtype_is(OP, "valid", valid, torch.bool)
        checks.same_device(OP, "valid", valid, "x", x.device)
        checks.shape_is(OP, "valid", valid, tuple(x.shape[:-1]))
    checks.in_range(OP, "out_len", out_len, 0, x.shape[-2])


def _fake(
    x: Tensor,
    companions: list[Tensor],
    slots: Tensor,
    scores: Tensor,
    budget: int,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    num_clusters: int = 0,
    quota: str = "exact",
    merge: str = "mean",
    largest: bool = False,
    out_len: int,
) -> Outputs:
    lead, visual = tuple(x.shape[:-2]), slots.shape[-1]
    segments = budget if labels is None else torch.sym_min(budget, visual)

    def index(length: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return slots.new_empty((*lead, length), dtype=dtype)

    y = x.new_empty((*lead, out_len, x.shape[-1]))
    gathered = [t.new_empty((*lead, out_len, *t.shape[x.dim() - 1 :])) for t in companions]
    sizes = (0, 0, 0) if labels is None else (visual, segments + 1, segments)
    plan = index(sizes[0]), index(sizes[1]), index(sizes[2], torch.bool)
    return y, gathered, index(out_len), index(segments), index(segments), *plan


register(
    "prune_sequence(Tensor x, Tensor[] companions, Tensor slots, Tensor scores, SymInt budget, "
    "Tensor? labels=None, Tensor? valid=None, *, "
    'SymInt num_clusters=0, str quota="exact", str merge="mean", bool largest=False, SymInt out_len) '
    "-> (Tensor y, Tensor[] companions, Tensor source, Tensor slots, "
    "Tensor anchors, Tensor perm, Tensor offsets, Tensor merged)",
    check=check,
    reference=reference.prune_sequence,
    fake=_fake,
    cuda="vitcop_kernels.ops.prune_sequence.kernel",
)


def prune_sequence(
    x: Tensor,
    companions: list[Tensor],
    slots: Tensor,
    scores: Tensor,
    budget: int,
    *,
    labels: Tensor | None = None,
    num_clusters: int = 0,
    quota: str = "exact",
    merge: str = "mean",
    largest: bool = False,
    valid: Tensor | None = None,
    out_len: int,
) -> Outputs:
    """Prune the V visual tokens of a sequence of n slots, given their scores: choose, expand, compact in one call.

    Without labels `budget` tokens are kept and the others dropped; with labels each cluster keeps some and merges the
    rest (Algorithm 3). The result is, in the same bits on a CPU, that of

        anchors = select_tokens(scores, budget, largest=largest)                               # without labels
        perm, offsets, anchors, merged = plan_tokens(labels, scores, num_clusters, budget, quota=quota)  # with labels
        p, o, source, m, _, new_slots, _ = expand_plan(slots, anchors, perm=perm, offsets=offsets, merged=merged,
                                                       valid=valid, num_slots=n, out_len=out_len)
        y, companions = compact_sequence(x, companions, p, o, source, merged=m, merge=merge)

    Args:
        x: `[B, n, C]` or `[n, C]`, float32, bfloat16 or float16, any strides.
        companions: `[B, n, ...]` or `[1, n, ...]` each (`[n, ...]` without a batch), as `compact_sequence` takes them.
        slots: `[B, V]` or `[V]` int64, the slot of each visual token, each in `[0, n)` and once.
        scores: `[B, V]`, float32, bfloat16 or float16; NaN is the worst, ties go to the lower index.
        budget: visual tokens to come out; without labels in `[0, V]`, with labels at least 1.
        labels: `[B, V]` int64 or int32, the cluster of each visual token as `plan_tokens` takes it.
        num_clusters: upper bound of the labels, at least 1; quota: "exact", "floor" or "released"; merge: "mean" or
            "anchor_plus_mean" as `segment_mean` has it. The three matter with labels alone.
        largest: without labels True keeps the largest scores (attention); with labels the smallest always win.
        valid: `[B, n]` bool, False for padding, which is dropped; None: no padding.
        out_len: n' in `[0, n]`, at least the number of new slots of every sample; samples with fewer are padded in
            front.

    On the CPU other slots, and an `out_len` too small, raise ValueError; on a GPU, where looking would cost a host
    sync, and in float64 the result is unspecified but its indices are in range (`slots`: n' where no room is left).

    Returns:
        y: `[B, n', C]` in the dtype of x: copies of tokens, means of merged ones, 0 for padding.
        companions: `[B, n', ...]` each, bit for bit the rows of the anchors; the first row for padding.
        source: `[B, n']` int64, the old slot whose place a new one takes; -1 for padding.
        slots: `[B, S]` int64, the new slot of each visual token that comes out, `S = budget` (with labels
            `min(budget, V)`); -1 for a segment that does not exist.
        anchors: `[B, S]` int64, which visual token that is; -1 for a segment that does not exist.
        perm, offsets, merged: `[B, V]`, `[B, S+1]` int64 and `[B, S]` bool, the plan for the visual tokens as
            `plan_tokens` returns it; `[B, 0]` without labels.

    Raises:
        ValueError, TypeError: shapes that do not fit, budgets out of range, `largest` with labels, unknown options,
            dtypes other than the above.

    Cost: O(V) to choose, O(V log V) with labels, O(n) for the plan, and one copy of what comes out. Not
    differentiable: where gradients are needed, compose the three ops.
    """
    return torch.ops.vitcop.prune_sequence(
        x,
        companions,
        slots,
        scores,
        budget,
        labels,
        valid,
        num_clusters=num_clusters,
        quota=quota,
        merge=merge,
        largest=largest,
        out_len=out_len,
    )
