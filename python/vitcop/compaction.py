"""Shorten whole sequences: from plans for the visual tokens to one gather, or one segment_mean, over all slots."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import vitcop_kernels as ops

from .methods.base import Plan


@dataclass(frozen=True)
class Compaction:
    """Slots of the shortened sequence, padded on the left where samples differ in length."""

    index: Tensor  # [B, n'] slot that each new slot takes the place of; 0 for padding
    column: Tensor  # [B, n] new slot of each old slot, n' where it has none (dropped, or merged into another)
    valid: Tensor | None  # [B, n'] bool, None: no padding
    lengths: list[int]  # slots of each sample that are not padding
    perm: Tensor | None  # [B, n] and
    offsets: Tensor | None  # [B, n'+1]: segments, where tokens are merged
    merged: Tensor | None  # [B, n'] bool
    merge: str

    def hidden(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n', C]: kept as they are, or merged."""
        if self.perm is None or self.offsets is None:
            return self.gather(x)
        return ops.segment_mean(x, self.perm, self.offsets, anchors=self.index, merged=self.merged, merge=self.merge)

    def gather(self, x: Tensor) -> Tensor:
        """[B or 1, n, ...] -> [B, n', ...]: what belongs to the anchors."""
        batch = self.index.shape[0]
        index = self.index.to(x.device)
        if batch == 1:
            return x.index_select(1, index[0])
        if x.shape[0] == 1:
            return x[0][index]
        return x[torch.arange(batch, device=x.device)[:, None], index]


def compact(
    slots: Sequence[tuple[Tensor | None, Tensor, Plan]],
    lengths: Sequence[int],
    dropped: Sequence[int],
    valid: Tensor | None,
    width: int,
    device: torch.device,
) -> Compaction:
    """Join the plans of all groups of samples.

    Args:
        slots: for each group: its rows of the batch (None: all), `[G, V]` slots of its visual tokens, and its plan.
        lengths, dropped: for each sample: slots that are not padding, and how many of them go.
        valid: [B, n] bool, False for padding (which goes as well), or None; width: n.
    """
    batch = len(lengths)
    place = torch.arange(width, device=device).expand(batch, width)
    owner = place.clone() if valid is None else place.masked_fill(~valid, -1)  # [B, n] slot whose segment a slot is in
    for rows, where, plan in slots:
        anchor = plan.owner(where.shape[1])
        anchor = where.gather(1, anchor.clamp(min=0)).masked_fill(anchor < 0, -1)
        if rows is None:
            owner.scatter_(1, where, anchor)
        else:
            owner[rows] = owner[rows].scatter(1, where, anchor)

    remaining = [n - d for n, d in zip(lengths, dropped, strict=True)]
    out = max(remaining)
    is_anchor = owner == place
    column = is_anchor.cumsum(1) - 1
    mask = None
    if min(remaining) < out:
        lead = torch.tensor([out - n for n in remaining]).to(device, non_blocking=True)[:, None]  # padding in front
        column = column + lead
        mask = torch.arange(out, device=device) >= lead
    new_slot = torch.where(is_anchor, column, out)
    index = place.new_zeros(batch, out + 1).scatter_(1, new_slot, place)[:, :out]

    perm = offsets = merged = None
    merge = next((plan.merge for _, _, plan in slots if plan.perm is not None), "mean")
    if any(plan.perm is not None for _, _, plan in slots):
        segment = column.gather(1, owner.clamp(min=0)).masked_fill(owner < 0, out)
        perm = segment.argsort(dim=1, stable=True)
        bounds = torch.arange(out + 1, device=device).expand(batch, -1).contiguous()
        offsets = torch.searchsorted(segment.gather(1, perm), bounds)
        merged = torch.zeros(batch, width, dtype=torch.bool, device=device)
        for rows, where, plan in slots:
            if plan.merged is not None:
                at = where.gather(1, plan.anchors)
                if rows is None:
                    merged.scatter_(1, at, plan.merged)
                else:
                    merged[rows] = merged[rows].scatter(1, at, plan.merged)
        merged = merged.gather(1, index)
        if mask is not None:
            merged = merged & mask
    return Compaction(index.contiguous(), new_slot, mask, remaining, perm, offsets, merged, merge)
