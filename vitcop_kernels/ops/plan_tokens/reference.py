"""Collaborative pruning (Eq. 5, Algorithm 3): from clusters and scores to a CSR of output tokens.

`K` is the number of clusters the caller allows, `S` the number of segments. Everything is a batched tensor operation:
no value is read on the host.
"""

import torch
from torch import Tensor

from vitcop_kernels._order import argsort_best_first


def plan_tokens(
    labels: Tensor, scores: Tensor, num_clusters: int, budget: int, *, quota: str = "exact", fill: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if labels.dim() == 1:
        plan = plan_tokens(labels[None], scores[None], num_clusters, budget, quota=quota, fill=fill)
        return plan[0][0], plan[1][0], plan[2][0], plan[3][0]

    labels = labels.long().masked_fill((labels < 0) | (labels >= num_clusters), -1)
    if quota == "released":  # tokens without a cluster are one more cluster, before label 0
        labels, num_clusters = labels + 1, num_clusters + 1
    clustered = labels >= 0  # [B, N]
    label = labels.clamp(min=0)
    member = labels[:, None] == torch.arange(num_clusters, device=labels.device)[:, None]  # [B, K, N]
    size = member.sum(-1)  # [B, K]
    present = size > 0
    num_present, num_tokens = present.sum(-1, keepdim=True), size.sum(-1, keepdim=True)  # [B, 1]
    total = torch.where(member, scores.double()[:, None], 0.0).sum(-1)  # [B, K] summed score of each cluster
    rank = _rank_in_cluster(labels, scores, size)  # [B, N]

    keep_all = num_tokens <= budget
    whole_clusters = (num_present > budget) & ~keep_all
    elite_budget = (budget - num_present).masked_fill(keep_all | whole_clusters, 0)
    if quota == "released":
        count = _released_quota(size, elite_budget, num_tokens, num_present, present, total)
    else:
        count, missing, remainder = _floor_quota(size, elite_budget, num_tokens)
        if quota == "exact":
            count = _deal_missing(count, missing, remainder, size)
    elite = clustered & (keep_all | (rank < count.gather(-1, label)))
    if quota == "floor" and fill:
        elite = elite | _fill(scores, clustered, elite, rank, size.gather(-1, label), missing)

    # The clusters beyond the budget-1 of smallest summed score share the group `num_clusters`.
    position = _inverse(_order_of_clusters(total, present))
    shared = whole_clusters & (position.gather(-1, label) >= budget - 1)
    group = label.masked_fill(shared, num_clusters)
    return _csr(clustered, elite, group, num_clusters + 1, min(budget, labels.shape[-1]))


def _order_of_clusters(total: Tensor, present: Tensor, descending: bool = False) -> Tensor:
    """Clusters by (summed score, label), absent ones last; a NaN sum counts as inf, ties go to the lower label."""
    key = total.masked_fill(total.isnan(), float("inf"))
    order = (-key if descending else key).argsort(dim=-1, stable=True)
    return order.gather(-1, (~present).gather(-1, order).to(torch.uint8).argsort(dim=-1, stable=True))


def _inverse(order: Tensor) -> Tensor:
    """The inverse permutation along the last dimension."""
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


def _rank_in_cluster(labels: Tensor, scores: Tensor, size: Tensor) -> Tensor:
    """Rank of each token by (score, index) among the tokens of its cluster; meaningless where the label is -1."""
    order = argsort_best_first(scores)
    order = order.gather(-1, labels.gather(-1, order).argsort(dim=-1, stable=True))  # clusters contiguous, -1 first
    slot = torch.arange(labels.shape[-1], device=labels.device).expand_as(labels)
    start = (labels < 0).sum(-1, keepdim=True) + size.cumsum(-1) - size  # [B, K]
    rank = slot - start.gather(-1, labels.gather(-1, order).clamp(min=0))
    return torch.empty_like(labels).scatter_(-1, order, rank)


def _floor_quota(size: Tensor, elite_budget: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 5 in integers: the floors, how many elites they miss, and what each division left over."""
    share, n = size * elite_budget, num_tokens.clamp(min=1)
    count = share // n
    return count, elite_budget - count.sum(-1, keepdim=True), share % n


def _deal_missing(count: Tensor, missing: Tensor, remainder: Tensor, size: Tensor) -> Tensor:
    """One elite each in rounds by descending remainder (ties: lower label), skipping clusters down to one member."""
    room = (size - 1 - count).clamp(min=0)  # [B, K]
    rounds = torch.arange(size.shape[-1] + 1, device=size.device)
    dealt = torch.minimum(room[:, None], rounds[:, None]).sum(-1)  # [B, rounds]: elites dealt by that many full rounds
    full = (dealt <= missing).sum(-1, keepdim=True) - 1
    left = missing - dealt.gather(-1, full)
    still_open = room > full
    order = (-remainder).masked_fill(~still_open, 1).argsort(dim=-1, stable=True)
    return count + torch.minimum(room, full) + (still_open & (_inverse(order) < left))


def _fill(scores: Tensor, clustered: Tensor, elite: Tensor, rank: Tensor, size: Tensor, missing: Tensor) -> Tensor:
    """The `missing` best tokens that are neither elite nor the last of their cluster."""
    candidate = clustered & ~elite & (rank < size - 1)
    return _first(candidate, argsort_best_first(scores), missing)


def _released_quota(
    size: Tensor, elite_budget: Tensor, num_tokens: Tensor, num_present: Tensor, present: Tensor, total: Tensor
) -> Tensor:
    """The authors' quota: float32 weights, round half to even, one repair pass over the clusters by summed score."""
    cap = (size - 1).clamp(min=0)
    weight = cap.float() / (num_tokens - num_present).clamp(min=1).float()
    count = torch.minimum((weight * elite_budget.float()).round().long(), cap)
    diff = elite_budget - count.sum(-1, keepdim=True)

    more = _first(count < cap, _order_of_clusters(total, present), diff)
    less = _first(count > 0, _order_of_clusters(total, present, descending=True), -diff)
    return count + more.long() - less.long()


def _first(can: Tensor, order: Tensor, how_many: Tensor) -> Tensor:
    """Mask of the first `how_many` entries that `can`, in the given order."""
    can_in_order = can.gather(-1, order)
    picked = can_in_order & (can_in_order.cumsum(-1) <= how_many)
    return torch.zeros_like(can).scatter_(-1, order, picked)


def _csr(
    clustered: Tensor, elite: Tensor, group: Tensor, num_groups: int, num_segments: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Elites as segments of one, the rest of each group as one segment, ordered by anchor."""
    batch, n = group.shape
    slot = torch.arange(n, device=group.device).expand(batch, n)
    rest = clustered & ~elite
    in_group = (group[:, None] == torch.arange(num_groups, device=group.device)[:, None]) & rest[:, None]  # [B, G, N]
    middle = in_group.sum(-1, keepdim=True) // 2
    is_middle = in_group & (in_group.cumsum(-1) - 1 == middle)
    group_anchor = torch.where(is_middle, slot[:, None], 0).sum(-1)  # [B, G]
    anchor = torch.where(elite, slot, group_anchor.gather(-1, group))
    is_anchor = elite | is_middle.any(1)

    ordinal = (is_anchor.cumsum(-1) - 1).gather(-1, anchor)
    segment = torch.where(clustered, ordinal, num_segments)
    perm = segment.argsort(dim=-1, stable=True)
    bounds = torch.arange(num_segments + 1, device=group.device).expand(batch, -1).contiguous()
    offsets = torch.searchsorted(segment.gather(-1, perm), bounds)

    target = torch.where(is_anchor, segment, num_segments)
    anchors = slot.new_full((batch, num_segments + 1), -1).scatter_(-1, target, slot)[:, :-1]
    merged = torch.zeros_like(anchors, dtype=torch.bool)
    merged = torch.cat([merged, merged[:, :1]], -1).scatter_(-1, target, is_anchor & rest)[:, :-1]
    return perm, offsets, anchors.contiguous(), merged.contiguous()
