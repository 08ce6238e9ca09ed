"""Budgets per image: each image of a prompt is pruned to its own counts, as if it were a sample of its own.

Methods know nothing of it: what they are shown as samples are images, those with equally many tokens together, and
what they plan is put together for the samples again, in whose coordinates the decoder runs. Counts follow from the
images' sizes, so every shape is known on the host, and nothing is read from the device.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcop.methods.base import Plan
from vitcop.methods.schedule import segments

from .compaction import Visible
from .layout import Group
from .stage import StageContext, content


@dataclass(frozen=True)
class _Part:
    """What a stage does to one image of each of G samples. Tensors of `plan` have a row for each."""

    plan: Plan | None  # None: the image stays as it is
    count: int  # its tokens before the stage
    rows: slice  # of `seen`
    seen: Visible  # all images of its size
    whole: Plan | None  # the plan for all of them

    @property
    def left(self) -> int:
        return self.count if self.plan is None else self.plan.anchors.shape[1]


class PerImage:
    """Between the samples of a prefill and their images.

    Args:
        groups: from `layout.group_samples(..., budget_per="image")`. images: from `layout.group_images`.
    """

    def __init__(self, groups: Sequence[Group], images: Sequence[Group]) -> None:
        self._groups, self._images = list(groups), list(images)
        self._left = {image.total: image.total for image in images}  # tokens that an image of that many still has

    def visible(self, samples: Sequence[Visible]) -> list[Visible]:
        """The images, from the samples as the next stage finds them."""
        slots: dict[int, list[Tensor]] = {total: [] for total in self._left}
        origins: dict[int, list[Tensor]] = {total: [] for total in self._left}
        for visible in samples:
            images, begin = visible.group.images, 0
            counts = [self._left[total] for total in images]
            pieces = zip(visible.slots.split(counts, dim=1), visible.origin.split(counts, dim=1), strict=True)
            for total, (slot, origin) in zip(images, pieces, strict=True):
                slots[total].append(slot)
                origins[total].append(origin - begin)
                begin += total
        return [
            Visible(group, torch.cat(slots[group.total]), Visible(group, group.slots), torch.cat(origins[group.total]))
            for group in self._images
        ]

    def join(self, seen: Sequence[Visible], plans: dict[int, Plan]) -> dict[tuple[int, ...], Plan]:
        """Plans for groups of samples, by `Group.images`, from those for images, by their tokens; groups without one
        stay as they are."""
        joined = {}
        taken = dict.fromkeys(self._left, 0)
        images = {visible.group.total: visible for visible in seen}
        for group in self._groups:
            parts = []
            for total in group.images:
                rows = slice(taken[total], taken[total] + len(group.samples))
                taken[total] = rows.stop
                whole = plans.get(total)
                plan = None if whole is None else _rows_of(whole, rows)
                parts.append(_Part(plan, self._left[total], rows, images[total], whole))
            if any(part.plan is not None for part in parts):
                joined[group.images] = _join(parts)
        self._left |= {total: plan.anchors.shape[1] for total, plan in plans.items()}
        return joined


def _rows_of(plan: Plan, rows: slice) -> Plan:
    held = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    mine: dict[str, Any] = {name: t[rows] for name, t in held.items() if isinstance(t, Tensor)}
    return dataclasses.replace(plan, **mine)


def _join(parts: Sequence[_Part]) -> Plan:
    """One plan for samples, from those for each of their images in turn."""
    some = next(part.plan for part in parts if part.plan is not None)
    begins = [0, *itertools.accumulate(part.count for part in parts)]
    starts = [0, *itertools.accumulate(part.left for part in parts)]
    anchors = [_anchors(part, some.anchors) for part in parts]
    plans = [part.plan for part in parts if part.plan is not None]
    merging = next((plan for plan in plans if plan.perm is not None), None)
    joined: dict[str, Any] = {"anchors": _shifted(anchors, begins)}
    if merging is not None:
        none = starts[-1]
        segment = _shifted([_segment(part, a) for part, a in zip(parts, anchors, strict=True)], starts)
        joined["perm"], joined["offsets"] = segments(segment.clamp(max=none), none)
        joined["merge"] = merging.merge
    if any(plan.merged is not None for plan in plans):
        flags = [None if part.plan is None else part.plan.merged for part in parts]
        joined["merged"] = torch.cat(
            [torch.zeros_like(a, dtype=torch.bool) if f is None else f for f, a in zip(flags, anchors, strict=True)], 1
        )
    if any(plan.labels is not None for plan in plans):
        joined["labels"] = _labels(parts, some.anchors)
    centers = [plan.centers for plan in plans if plan.centers is not None]
    if len(centers) == len(parts):
        joined["centers"] = _shifted(centers, begins)
    if any(plan.places is not None for plan in plans):
        places = [None if part.plan is None else part.plan.places for part in parts]
        wanted = [3 * a if p is None else p for p, a in zip(places, anchors, strict=True)]
        joined["places"] = _shifted(wanted, [3 * begin for begin in begins])
    if any(plan.hidden is not None for plan in plans):
        joined["hidden"] = _Content(tuple(parts))
    return Plan(**joined)


def _anchors(part: _Part, like: Tensor) -> Tensor:
    """[G, S] of an image, counted from its first token."""
    if part.plan is not None:
        return part.plan.anchors
    return torch.arange(part.count, device=like.device).expand(like.shape[0], -1)


def _shifted(tensors: Sequence[Tensor], by: Sequence[int]) -> Tensor:
    return torch.cat([t + begin for t, begin in zip(tensors, by, strict=False)], dim=1)


NOWHERE = 1 << 40  # more than any number of outputs


def _segment(part: _Part, anchors: Tensor) -> Tensor:
    """[G, V] the output that each token of an image goes into; from `NOWHERE` on, none."""
    plan, outputs = part.plan, part.left
    segment = anchors.new_full((anchors.shape[0], part.count), NOWHERE)
    if plan is None or plan.perm is None or plan.offsets is None:
        return segment.scatter(1, anchors, torch.arange(outputs, device=anchors.device).expand_as(anchors))
    place = torch.arange(part.count, device=anchors.device).expand_as(segment).contiguous()
    of = torch.searchsorted(plan.offsets[:, 1:].contiguous(), place, right=True)
    of = of.masked_fill((of >= outputs) | (place < plan.offsets[:, :1]), NOWHERE)
    return segment.scatter(1, plan.perm, of)


def _labels(parts: Sequence[_Part], like: Tensor) -> Tensor:
    """[G, V] clusters of the sample; -1 in images that were not clustered."""
    found, bound = [], 0
    for part in parts:
        labels = None if part.plan is None else part.plan.labels
        if labels is None:
            found.append(like.new_full((like.shape[0], part.count), -1))
        else:
            found.append(torch.where(labels < 0, -1, labels + bound))
        group = part.seen.group
        bound += max(part.count, group.num_segments * group.max_segment)  # at least as many as it has clusters
    return torch.cat(found, dim=1)


@dataclass(frozen=True)
class _Content:
    """[G, S, C] what plans put into their slots, image after image."""

    parts: tuple[_Part, ...]

    def __call__(self, ctx: Any) -> Tensor:
        found = []
        for part in self.parts:
            image: StageContext = ctx.of(part.seen, part.left)
            if part.whole is None:
                made = image.hidden
            elif part.whole.selection() is part.whole and part.whole.perm is None:
                made = image.hidden.gather(1, part.whole.anchors[..., None].expand(-1, -1, image.hidden.shape[-1]))
            else:
                made = content(part.whole, image)
            found.append(made[part.rows])
        return torch.cat(found, dim=1)
