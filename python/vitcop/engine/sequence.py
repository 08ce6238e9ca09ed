"""The slots that a decoder still has, and all that belongs to each of them."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequential

import torch
from torch import Tensor

import vitcop_kernels as ops
from vitcop.methods.base import Choice, Plan

from .compaction import Compaction, Visible, compact, put, wanted_order
from .layout import Group, Prompt

Plans = Mapping[tuple[int, ...], Plan]
"""Of the samples of a batch, by `Group.images`."""
Rotary = tuple[Tensor, Tensor]
"""cos and sin, `[B or 1, n, d]`."""


class Sequence:
    """A batch of sequences of `width` slots each, padded on the left once they differ in length.

    Position ids matter only by their differences. Where a stage makes them contiguous, they therefore stay contiguous
    up to the prompt's last one, so that decoding goes on from the prompt's own length: `"compact"` keeps the last ids
    of the prompt, `"renumber"` the first of ids that begin as many later as tokens will be removed in all. After
    earlier turns both keep the first ids, and what follows has to go on from there.

    Args:
        positions: of the program. rotate: cos and sin of position ids `[B or 1, n]`.
        later: whether earlier turns are in the cache.
    """

    def __init__(
        self, batch: int, width: int, groups: list[Group], prompt: Prompt | None, valid: Tensor | None,
        positions: str, rotate: Callable[[Tensor, Tensor], Rotary], later: bool = False,
    ) -> None:  # fmt: skip
        self.batch, self.width, self.valid = batch, width, valid
        self._prompt_lengths = self.lengths = prompt.lengths if prompt is not None else [width] * batch
        self.visible = [Visible(group, group.slots) for group in groups]
        self.source: Tensor | None = None  # [B, n] slot of the prompt that each slot came from; None: itself
        self.rotary: Rotary | None = None  # of the current slots
        self.ids: Tensor | None = None  # [B or 1, n]; None: cos and sin of contiguous ids are in the table
        self._positions, self._rotate = positions, rotate
        self._downwards = later or positions == "renumber"
        self._table: tuple[Rotary, list[int]] | None = None  # of contiguous ids, and slots of each sample among them

    def begin(self, rotary: Rotary, position_ids: Tensor | None) -> None:
        """
        Args:
            position_ids: `[B or 1, n]`, where they are not contiguous, or will not be when the last stage counts anew.
        """
        self.rotary, self.ids = rotary, position_ids
        self._table = rotary, self.lengths

    def shorten(
        self, hidden: Tensor, plans: Plans, removed: Sequential[int], layer: int, last: bool
    ) -> tuple[Tensor, Compaction]:
        """Bring `hidden [B, n, C]` and all that belongs to a slot to the sequence that a stage's plans leave.

        Args:
            removed: slots of the prompt that each sample has lost then. layer: in front of which the stage stands.
            last: no other stage follows.

        Returns the new hidden states and the compaction.
        """
        before, lengths = self.visible, self._lengths(removed)
        parts = [(v.group.rows, v.slots, plans[v.group.images].selection()) for v in before if v.group.images in plans]
        compaction = compact(parts, lengths, self.valid, self.width)
        follow, restart = self._numbering(layer, last)
        hidden, found = compaction.all(hidden, self._companions(follow, restart))
        self._arrive(compaction.index, found, lengths, follow)
        if self.ids is not None and not follow:
            if not restart:
                self._recount(compaction)
            self.rotary = self._rotate(hidden, self.ids)
        self.visible = self._moved(before, plans, compaction)
        order = wanted_order(compaction, plans, before, self.visible)
        if order is not None:
            hidden = self._reorder(hidden, order, follow)
        return hidden, compaction

    def chooses(self, hidden: Tensor) -> bool:
        """Whether `choose` can shorten it: one group of all samples, on one device, without position ids to count."""
        group = self.visible[0].group
        same = hidden.device == group.slots.device
        return same and group.rows is None and len(self.visible) == 1 and self.ids is None

    def choose(
        self, hidden: Tensor, choice: Choice, removed: Sequential[int], layer: int, last: bool
    ) -> tuple[Tensor, Plan]:
        """`shorten`, with the choice made in the same call: the new hidden states and the plan."""
        (before,), lengths = self.visible, self._lengths(removed)
        follow, restart = self._numbering(layer, last)
        hidden, found, index, slots, anchors, perm, offsets, merged = ops.prune_sequence(
            hidden, self._companions(follow, restart), before.slots, choice.scores, choice.budget,
            labels=choice.labels, num_clusters=choice.num_clusters, quota=choice.quota, merge=choice.merge,
            largest=choice.largest, valid=self.valid, out_len=max(lengths),
        )  # fmt: skip
        self._arrive(index, found, lengths, follow)
        self.visible = [Visible(before.group, slots, before, anchors)]
        if choice.labels is None:
            return hidden, Plan(anchors)
        return hidden, Plan(anchors, perm, offsets, merged, choice.labels, choice.merge, choice.centers)

    def _lengths(self, removed: Sequential[int]) -> list[int]:
        return [n - gone for n, gone in zip(self._prompt_lengths, removed, strict=True)]

    def _numbering(self, layer: int, last: bool) -> tuple[bool, bool]:
        """Whether position ids follow their tokens through a stage, and whether they restart there; neither: they
        become contiguous."""
        contiguous = self._positions == "renumber" or (layer == 0 and self._positions != "original")
        restart = last and self._positions == "released" and not contiguous
        return not (contiguous or restart), restart

    def _companions(self, follow: bool, restart: bool) -> list[Tensor]:
        """What moves with the hidden states."""
        moved = [] if self.source is None else [self.source]
        if follow:
            assert self.rotary is not None
            moved += self.rotary
        if self.ids is not None:
            moved.append(_restarted(self.ids, self.valid) if restart else self.ids)
        return moved

    def _arrive(self, index: Tensor, found: list[Tensor], lengths: list[int], follow: bool) -> None:
        """Take over what has moved. index: `[B, n']` slot that each new slot takes the place of; -1 for padding."""
        self.valid = index >= 0 if min(lengths) < max(lengths) else None
        self.source = index if self.source is None else found.pop(0)
        if self.ids is not None:
            self.ids = found.pop()
        self.lengths, self.width = lengths, max(lengths)
        if follow:
            self.rotary = found[0], found[1]
        elif self.ids is None:
            self.rotary = self._from_table(end=not self._downwards)

    def put(self, hidden: Tensor, number: int, content: Tensor) -> Tensor:
        """`hidden` with `content [G, V, C]` in place of the visual tokens of a group."""
        return put(hidden, self.visible[number], content)

    def _from_table(self, end: bool) -> Rotary:
        """Contiguous ids: the last ones of those before, or the first ones."""
        assert self._table is not None
        (cos, sin), lengths = self._table
        begin = cos.shape[1] - self.width if end else 0
        if end or (self.valid is None and min(lengths) == cos.shape[1]):
            rotary = cos[:, begin : begin + self.width], sin[:, begin : begin + self.width]
        else:  # the first of each sample, behind its padding
            ahead = [(cos.shape[1] - n) - (self.width - left) for n, left in zip(lengths, self.lengths, strict=True)]
            place = torch.arange(self.width, device=cos.device)
            place = (place + torch.tensor(ahead, device=cos.device)[:, None]).clamp(min=0)
            row = torch.arange(self.batch, device=cos.device)[:, None] if cos.shape[0] > 1 else 0
            rotary = cos[row, place], sin[row, place]
        if end:
            self._table = rotary, self.lengths
        return rotary

    def _recount(self, compaction: Compaction) -> None:
        """Ids that are not contiguous, without those of the tokens that are gone."""
        assert self.ids is not None
        removed = compaction.removed
        self.ids = self.ids - removed[:, :-1] if self._downwards else self.ids + (removed[:, -1:] - removed[:, :-1])

    def _moved(self, before: list[Visible], plans: Plans, compaction: Compaction) -> list[Visible]:
        """Where the visual tokens of each group are now."""
        visible, new_slots = [], iter(compaction.slots)
        for old in before:
            group, slots = old.group, old.slots
            plan = plans.get(group.images)
            if plan is not None:
                found = next(new_slots)
                if plan.places is not None:  # in the order of the outputs
                    slots = slots.gather(1, plan.anchors)
            if plan is None or plan.places is not None:
                column = compaction.column if group.rows is None else compaction.column[group.rows]
                found = column.gather(1, slots)
            visible.append(Visible(group, found, old, None if plan is None else plan.anchors))
        return visible

    def _reorder(self, hidden: Tensor, order: Tensor, follow: bool) -> Tensor:
        """Bring outputs to the places that their plans want. Contiguous ids belong to places, others to tokens."""
        assert self.source is not None and self.rotary is not None
        place = order.argsort(dim=1)
        self.visible = [
            Visible(v.group, (place if v.group.rows is None else place[v.group.rows]).gather(1, v.slots), v)
            for v in self.visible
        ]
        each = torch.arange(self.batch, device=order.device)[:, None]
        self.source = self.source[each, order]
        if follow:
            cos, sin = (t.expand(self.batch, -1, -1)[each, order] for t in self.rotary)
            self.rotary = cos, sin
            if self.ids is not None:
                self.ids = self.ids.expand(self.batch, -1)[each, order]
        return hidden[each, order]


def _restarted(ids: Tensor, valid: Tensor | None) -> Tensor:
    """[B or 1, n] position ids that count the slots, no padding, from the first one's id on."""
    if valid is None:
        return ids[:, :1] + torch.arange(ids.shape[1], device=ids.device)
    start = ids.masked_fill(~valid, torch.iinfo(ids.dtype).max).amin(1, keepdim=True)
    return start + valid.cumsum(1) - 1
