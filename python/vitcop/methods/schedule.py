"""What the methods that are compared with share: budgets, layers in decoders of other depths, equal counts for all."""

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Context, Method, Plan, Program, Stage

PUBLISHED_DEPTH = 32  # decoder layers of the models that the published layers are meant for


@dataclass
class Budgeted(Method):
    """A method with a budget: `retain` visual tokens on average over the decoder's layers, or `retention`, their share.

    A sample of no more than `retain` tokens, or of so few that the method would average less than `retain` of them
    however it prunes, keeps all. A `retention` that cannot be averaged is refused.

    Raises ValueError for anything else than one of them, unless `given_otherwise`.
    """

    retain: int | None = None
    retention: float | None = None

    def __post_init__(self) -> None:
        if self.retain is not None and self.retention is not None:
            raise ValueError("retain, retention: expected one of them, got both")
        if self.retain is not None and (isinstance(self.retain, bool) or self.retain < 1):
            raise ValueError(f"retain: expected a number of tokens, at least 1, got {self.retain!r}")
        if self.retention is not None and not 0 < self.retention <= 1:
            raise ValueError(f"retention: expected a share in (0, 1], got {self.retention!r}")
        if self.budgeted == self.given_otherwise():
            found = "both" if self.budgeted else "none of them"
            raise ValueError(f"{type(self).__name__}: expected retain or retention, or {self.instead}, got {found}")

    instead = "nothing else"

    def given_otherwise(self) -> bool:
        """Whether other arguments say how many tokens are kept."""
        return False

    @property
    def budgeted(self) -> bool:
        return self.retain is not None or self.retention is not None

    def average(self, total: int) -> float:
        """Visual tokens of a layer, mean over all layers, for a sample that has `total` of them."""
        if self.retain is not None:
            return min(self.retain, total)
        assert self.retention is not None
        return self.retention * total

    def keeps_all(self, total: int, most: float) -> bool:
        """Whether a sample is too small for the budget, where pruning averages at most `most` of its tokens."""
        return self.average(total) >= total or (self.retain is not None and self.retain > most)

    def infeasible(self, total: int, low: float, high: float) -> ValueError:
        name = type(self).__name__
        return ValueError(
            f"infeasible budget: expected {low:.1f} to {high:.1f} of {total} visual tokens on average over the layers, "
            f"which is what {name} can average where it prunes, got {self.average(total):.1f}; change the budget or "
            "the layers"
        )


def kept_whole(method: Any, counts: Callable[[int], Sequence[int]], total: int) -> str | None:
    """`Program.kept_whole` of a method with a `retain`, and `counts` of tokens after its stages."""
    if method.retain is None or total <= method.retain or list(counts(total))[-1] < total:
        return None
    return (
        f"{type(method).__name__} keeps all {total} visual tokens of a sample (or image): its mildest pruning would "
        f"average fewer than retain={method.retain}"
    )


def layers_for(layers: Sequence[int], given: Sequence[int] | None, num_layers: int) -> tuple[list[int], list[str]]:
    """Layers whose inputs are pruned, and notes for the report. Those given by the caller stay as they are; published
    ones (for 32 layers) move with the depth of the decoder, except for the first three layers.

    Raises ValueError where they are not ascending layers of the decoder.
    """
    chosen = list(layers if given is None else given)
    if given is None and num_layers != PUBLISHED_DEPTH:
        chosen = [layer if layer <= 3 else round(layer * num_layers / PUBLISHED_DEPTH) for layer in layers]
        for place in range(1, len(chosen)):
            chosen[place] = max(chosen[place], chosen[place - 1] + 1)
    if not all(a < b for a, b in zip([0, *chosen], [*chosen, num_layers], strict=True)):
        raise ValueError(f"layers: expected ascending layers from 1 to {num_layers - 1}, got {chosen}")
    notes = []
    if chosen != list(layers) and given is None:
        notes.append(f"layers scaled to a decoder of {num_layers}: {chosen} (published: {list(layers)} of 32)")
    return chosen, notes


def spread(layers: Sequence[int], num_layers: int, shares: Sequence[float]) -> list[float]:
    """Layers that run on what the stages leave, each weighted by its share of the first stage's tokens."""
    ends = [*layers[1:], num_layers]
    return [(end - begin) * share for begin, end, share in zip(layers, ends, shares, strict=True)]


@dataclass
class SameSchedule(Budgeted):
    """A baseline that only ranks: tokens are pruned where and as far as another method (`schedule_of`) prunes them, or
    by `retain` or `retention` once, before the decoder."""

    schedule_of: Method | None = None

    instead = "schedule_of"

    def given_otherwise(self) -> bool:
        return self.schedule_of is not None

    def program(self, num_layers: int) -> Program:
        name = type(self).__name__.lower()
        if self.schedule_of is None:
            return Program([Stage(name, 0, functools.partial(self._select, 0))], self._count)
        other = self.schedule_of.program(num_layers)
        stages = [
            Stage(f"{name} {number + 1}", stage.layer, functools.partial(self._select, number))
            for number, stage in enumerate(other.stages)
        ]
        return Program(stages, other.counts, other.positions, list(other.notes), other.kept_whole)

    def _count(self, total: int) -> Sequence[int]:
        return [max(1, round(self.average(total)))]

    def _select(self, number: int, ctx: Context) -> Plan:
        return Plan(self.choose(number, ctx))

    @abstractmethod
    def choose(self, number: int, ctx: Context) -> Tensor:
        """[G, budget] tokens that stage `number` keeps, ascending."""


def segments(segment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`perm [G, V]` and `offsets [G, count+1]` of a Plan, from the segment `[G, V]` that each token is in: from
    `count` on, none."""
    perm = segment.argsort(dim=1, stable=True)
    bounds = torch.arange(count + 1, device=segment.device).expand(segment.shape[0], -1).contiguous()
    return perm, torch.searchsorted(segment.gather(1, perm), bounds)
