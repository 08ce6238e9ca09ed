"""Shorten whole sequences: from plans for the visual tokens to one plan, and one gather, over all slots."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import vitcop_kernels as ops
from vitcop.methods.base import Plan

from .layout import Group


@dataclass
class Visible:
    """The visual tokens that G samples still have, on their way through the decoder."""

    group: Group
    slots: Tensor  # [G, V] where they are in the current sequence
    before: "Visible | None" = None  # those that a stage found; None: none has been there
    anchors: Tensor | None = None  # [G, V] which of those they are; None: all

    @functools.cached_property
    def origin(self) -> Tensor:
        """[G, V] which of the sample's unpruned visual tokens they are."""
        if self.before is None:
            return self.group.order
        origin = self.before.origin
        if self.anchors is None:
            return origin
        return self.anchors if origin is self.group.order else origin.gather(1, self.anchors)


Part = tuple[Tensor | None, Tensor, Plan]  # rows of the batch (None: all), [G, V] slots of their visual tokens, a plan


@dataclass(slots=True)
class Compaction:
    """Slots of the shortened sequence, padded on the left where samples differ in length."""

    index: Tensor  # [B, n'] slot that each new slot takes the place of; -1 for padding
    column: Tensor  # [B, n] new slot of each old slot, n' where it has none (dropped, or merged into another)
    removed: Tensor  # [B, n'+1] visual tokens that went before each new slot, and in all
    valid: Tensor | None  # [B, n'] bool, None: no padding
    perm: Tensor  # [B, n] and
    offsets: Tensor  # [B, n'+1]: segments
    merged: Tensor  # [B, n'] bool
    merge: str
    merges: bool  # are there segments of more than one?
    slots: list[Tensor]  # for each part: [G, S] new slots of its plan's outputs

    def hidden(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n', C]: kept as they are, or merged."""
        return self.all(x, [])[0]

    def all(self, x: Tensor, companions: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[B, n, C] kept or merged, and what belongs to the anchors of companions [B or 1, n, ...]: [B, n', ...]."""
        perm, offsets, index = self.perm, self.offsets, self.index
        merged = self.merged if self.merges else None
        if x.device == index.device:
            return ops.compact_sequence(x, companions, perm, offsets, index, merged=merged, merge=self.merge)
        plan = [t.to(x.device) for t in (perm, offsets, index)]
        merged = None if merged is None else merged.to(x.device)
        near = [t for t in companions if t.device == x.device]
        y, found = ops.compact_sequence(x, near, *plan, merged=merged, merge=self.merge)
        moved = iter(found)
        return y, [next(moved) if t.device == x.device else self.gather(t) for t in companions]

    def gather(self, x: Tensor) -> Tensor:
        """[B or 1, n, ...] -> [B, n', ...]: what belongs to the anchors."""
        batch = self.index.shape[0]
        index = self.index.to(x.device)
        if batch == 1:
            return x.index_select(1, index[0])
        if x.shape[0] == 1:
            return x[0][index]
        return x[torch.arange(batch, device=x.device)[:, None], index]


def compact(parts: Sequence[Part], lengths: Sequence[int], valid: Tensor | None, width: int) -> Compaction:
    """Join the plans of all groups of samples.

    Args:
        lengths: slots of each sample that are left. valid: [B, n] bool, False for padding (which goes as well), or
            None. width: n.
    """
    out = max(lengths)
    merging = next((plan for _, _, plan in parts if plan.perm is not None), None)
    slots, anchors, perm, offsets, merged = _joined(parts, len(lengths), merging is not None)
    new = ops.expand_plan(
        slots, anchors, perm=perm, offsets=offsets, merged=merged, valid=valid, num_slots=width, out_len=out
    )
    new_perm, new_offsets, index, new_merged, column, new_slots, removed = new
    return Compaction(
        index=index, column=column, removed=removed, valid=index >= 0 if min(lengths) < out else None,
        perm=new_perm, offsets=new_offsets, merged=new_merged,
        merge="mean" if merging is None else merging.merge, merges=merging is not None,
        slots=[
            new_slots if rows is None else new_slots[rows, : plan.anchors.shape[1]] for rows, _, plan in parts
        ],
    )  # fmt: skip


def _joined(
    parts: Sequence[Part], batch: int, merging: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Slots, anchors, perm, offsets and merged of all parts, a row for each sample; -1 where there is no token."""
    if len(parts) == 1 and parts[0][0] is None:
        _, slots, plan = parts[0]
        return slots, plan.anchors, plan.perm, plan.offsets, plan.merged
    tokens = max(slots.shape[1] for _, slots, _ in parts)
    segments = max(plan.anchors.shape[1] for _, _, plan in parts)

    def join(width: int, padding: int | bool, tensors: Sequence[Tensor]) -> Tensor:
        joined = tensors[0].new_full((batch, width), padding)
        for (rows, _, _), t in zip(parts, tensors, strict=True):
            joined[slice(None) if rows is None else rows, : t.shape[1]] = t
        return joined

    slots = join(tokens, -1, [slots for _, slots, _ in parts])
    anchors = join(segments, -1, [plan.anchors for _, _, plan in parts])
    if not merging:
        return slots, anchors, None, None, None
    members, bounds, flags = zip(*(_segments(plan) for _, _, plan in parts), strict=True)
    return slots, anchors, join(tokens, -1, members), join(segments + 1, tokens, bounds), join(segments, False, flags)


def _segments(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Perm, offsets and merged of a plan; one that merges nothing has its anchors as segments."""
    anchors = plan.anchors
    perm, offsets, merged = plan.perm, plan.offsets, plan.merged
    if perm is None or offsets is None:
        perm = anchors
        offsets = torch.arange(anchors.shape[1] + 1, device=anchors.device).expand(anchors.shape[0], -1)
    return perm, offsets, torch.zeros_like(anchors, dtype=torch.bool) if merged is None else merged


def wanted_order(
    compaction: Compaction, plans: Mapping[tuple[int, ...], Plan], before: Sequence[Visible], after: Sequence[Visible]
) -> Tensor | None:
    """[B, n'] which new slot belongs where, for plans that put outputs elsewhere than at their anchors; None: none do.

    before, after: the visual tokens of each group in the old sequence and in the new one.
    """
    if not any(plan.places is not None for plan in plans.values()):
        return None
    unit = compaction.index.shape[1]  # more than outputs want one place
    key = (compaction.index + 1) * 3 * unit  # 0 for padding, which stays in front
    for old, new in zip(before, after, strict=True):
        plan = plans.get(old.group.images)
        if plan is not None and plan.places is not None:
            token = (plan.places + 1).div(3, rounding_mode="floor")
            wanted = 3 * old.slots.gather(1, token) + 3 + plan.places - 3 * token
            rank = torch.arange(wanted.shape[1], device=key.device)
            key = put(key[..., None], new, (wanted * unit + rank)[..., None])[..., 0]
    return key.argsort(dim=1, stable=True)


def put(hidden: Tensor, visible: Visible, content: Tensor) -> Tensor:
    """`hidden [B, n, C]` with these visual tokens `[G, V, C]`."""
    rows = visible.group.rows
    if rows is None:
        rows = torch.arange(hidden.shape[0], device=visible.slots.device)
    place = rows[:, None].to(hidden.device), visible.slots.to(hidden.device)
    return hidden.index_put(place, content.to(hidden))


def put_back(hidden: Tensor, source: Tensor | None, valid: Tensor | None, length: int) -> Tensor:
    """`[B, n, C]` of a shortened prompt -> `[B, length, C]`: every token in its own slot, 0 where one is gone.

    Args:
        source: `[B, n]` slot that each token came from, None: nothing was shortened. valid: `[B, n]` bool, False for
            padding, or None.
    """
    if source is None:
        return hidden
    batch, _, width = hidden.shape
    source = source.to(hidden.device)
    if valid is None and batch == 1:
        return hidden.new_zeros(1, length, width).index_copy(1, source[0], hidden)
    target = source if valid is None else source.masked_fill(~valid.to(hidden.device), length)
    full = hidden.new_zeros(batch, length + 1, width)
    return full.scatter(1, target[..., None].expand_as(hidden), hidden)[:, :-1]
