"""Choose, expand, compact: the composition of the references."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitcop_kernels.ops.compact_sequence.reference import compact_sequence
from vitcop_kernels.ops.expand_plan.reference import expand_plan
from vitcop_kernels.ops.plan_tokens.reference import plan_tokens
from vitcop_kernels.ops.select_tokens.reference import select_tokens

Outputs = tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def composed(
    select_tokens: Callable[..., Any],
    plan_tokens: Callable[..., Any],
    expand_plan: Callable[..., Any],
    compact_sequence: Callable[..., Any],
) -> Callable[..., Outputs]:
    """`prune_sequence`, made of implementations of the four ops."""

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
    ) -> Outputs:
        perm = offsets = merged = None
        if labels is None:
            anchors = select_tokens(scores, budget, largest=largest)
        else:
            perm, offsets, anchors, merged = plan_tokens(labels, scores, num_clusters, budget, quota=quota)
        whole = expand_plan(slots, anchors, perm, offsets, merged, valid, num_slots=x.shape[-2], out_len=out_len)
        y, gathered = compact_sequence(x, companions, *whole[:4], merge=merge)
        if perm is None or offsets is None or merged is None:
            perm, offsets = (slots.new_empty((*slots.shape[:-1], 0)) for _ in range(2))
            merged = perm.new_empty(perm.shape, dtype=torch.bool)
        return y, gathered, whole[2], whole[5], anchors, perm, offsets, merged

    return prune_sequence


prune_sequence = composed(select_tokens, plan_tokens, expand_plan, compact_sequence)
