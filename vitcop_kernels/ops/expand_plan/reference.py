"""From a plan for the visual tokens to the plan of the whole sequence.

Everything is a batched tensor operation: no value is read on the host. Column n, n' or V of a scratch tensor takes what
belongs nowhere.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def expand_plan(
    slots: Tensor,
    anchors: Tensor,
    perm: Tensor | None = None,
    offsets: Tensor | None = None,
    merged: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    num_slots: int,
    out_len: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if slots.dim() == 1:
        lift = [None if t is None else t[None] for t in (perm, offsets, merged, valid)]
        plan = expand_plan(slots[None], anchors[None], *lift, num_slots=num_slots, out_len=out_len)
        return plan[0][0], plan[1][0], plan[2][0], plan[3][0], plan[4][0], plan[5][0], plan[6][0]

    batch, num_tokens = slots.shape
    num_segments, n = anchors.shape[1], num_slots

    def scatter(size: int, fill: int, index: Tensor, values: Tensor) -> Tensor:
        """[B, size] of `fill`, but `values` at `index`; index `size` goes nowhere."""
        return slots.new_full((batch, size + 1), fill).scatter(1, index, values.long())[:, :size]

    def count(size: int) -> Tensor:
        return torch.arange(size, device=slots.device).expand(batch, size)

    # Slot of each token and of each segment's anchor, n where there is none (one more token that has none: V).
    slot_of = pad(slots.masked_fill((slots < 0) | (slots >= n), n), (0, 1), value=n)  # [B, V+1]
    if perm is None or offsets is None:  # every anchor is a segment of its own
        member, segment, first, lengths = anchors, count(num_segments), count(num_segments), torch.ones_like(anchors)
    else:
        bounds = offsets.clamp(0, num_tokens).cummax(-1).values
        member, first, lengths = perm, bounds[:, :-1], bounds.diff()
        place = count(num_tokens).contiguous()
        segment = torch.searchsorted(bounds[:, 1:].contiguous(), place, right=True)
        segment = segment.masked_fill(place < bounds[:, :1], num_segments)
    inside = (anchors >= 0) & (anchors < num_tokens) & (lengths > 0)
    stands = slot_of.gather(1, anchors.masked_fill(~inside, num_tokens))  # [B, S]
    exists = stands < n

    # Which slots stay, and where: a segment's length at its anchor, 1 at other tokens, 0 elsewhere.
    visual = scatter(n, 0, slot_of, torch.ones_like(slot_of)) > 0  # [B, n]
    alone = ~visual if valid is None else ~visual & valid
    length = torch.where(alone, 1, scatter(n, 0, stands, lengths))
    column = (length > 0).cumsum(1) - 1
    column = column + (out_len - 1 - pad(column, (1, 0), value=-1)[:, -1:])  # padding comes first
    stays = (length > 0) & (column >= 0)
    column = torch.where(stays, column, out_len)
    length = length.masked_fill(~stays, 0)
    start = length.cumsum(1) - length
    total = length.sum(1, keepdim=True)

    new_offsets = torch.cat([scatter(out_len, 0, column, start), total], 1)
    new_anchors = scatter(out_len, -1, column, count(n))
    flags = torch.zeros_like(anchors) if merged is None else merged
    new_merged = scatter(out_len, 0, column, scatter(n, 0, stands, flags)) > 0
    gone = (visual & ~stays).cumsum(1)
    removed = torch.cat([scatter(out_len, 0, column, gone), pad(gone, (1, 0))[:, -1:]], 1)
    new_column = pad(column, (0, 1), value=-1)
    new_slots = new_column.gather(1, stands)

    # Members follow the start of their segment, tokens of none come last.
    at = pad(start, (0, 1), value=n).masked_fill(pad(~stays, (0, 1), value=True), n).gather(1, stands) - first  # [B, S]
    at = pad(at, (0, 1), value=n).gather(1, segment) + (count(member.shape[1]) if perm is not None else segment)
    known = pad(exists, (0, 1)).gather(1, segment) & (member >= 0) & (member < num_tokens)
    where = slot_of.gather(1, member.masked_fill(~known, num_tokens))
    place = scatter(n, n, where, at.clamp(0, n))
    place = torch.where(alone & stays, start, place)  # [B, n] of each slot in perm
    rest = place >= n
    place = torch.where(rest, total + rest.cumsum(1) - 1, place).clamp(max=n)
    new_perm = scatter(n, 0, place, count(n))
    results = (new_perm, new_offsets, new_anchors, new_merged, column, new_slots, removed)
    return tuple(t.contiguous() for t in results)  # type: ignore[return-value]
