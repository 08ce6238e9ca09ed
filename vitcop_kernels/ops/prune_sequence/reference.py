"""Choose, expand, compact: the composition of three references."""

import torch
from torch import Tensor

from vitcop_kernels.ops.compact_sequence.reference import compact_sequence
from vitcop_kernels.ops.expand_plan.reference import expand_plan
from vitcop_kernels.ops.plan_tokens.reference import plan_tokens
from vitcop_kernels.ops.select_tokens.reference import select_tokens


def prune_sequence(
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
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan: tuple[Tensor, ...] = ()
    if labels is None:
        anchors = select_tokens(scores, budget, largest=largest)
    else:
        perm, offsets, anchors, merged = plan_tokens(labels, scores, num_clusters, budget, quota=quota)
        plan = perm, offsets, merged
    whole = expand_plan(slots, anchors, *(plan or (None,) * 3), valid, num_slots=x.shape[-2], out_len=out_len)
    y, gathered = compact_sequence(x, companions, *whole[:4], merge=merge)
    none = [slots.new_empty((*slots.shape[:-1], 0), dtype=t) for t in (torch.int64, torch.int64, torch.bool)]
    perm, offsets, merged = plan or none
    return y, gathered, whole[2], whole[5], anchors, perm, offsets, merged
