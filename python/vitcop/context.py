"""What a stage sees of a running model."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vitcop_kernels as ops

from .ahead import Ahead
from .layout import Group


@dataclass
class Visible:
    """The visual tokens that G samples still have, on their way through the decoder."""

    group: Group
    slots: Tensor  # [G, V] where they are in the current sequence
    origin: Tensor  # [G, V] which of the sample's unpruned visual tokens they are


@dataclass
class Sources:
    """Tensors of one prefill that stages ask for, each computed once. T: visual tokens of all images."""

    saliency: Callable[[], Tensor]  # [T]
    features: Callable[[], Tensor]  # [T, D]
    positions: Callable[[], Tensor]  # [T, 2]
    hidden: Tensor  # [B, n, C]
    key_norms: Callable[[Tensor, Callable[[Tensor], Tensor], str, str], Tensor]
    attention: Callable[[str], Tensor]  # [B, n]
    cached_keys: Callable[[], Tensor | None]  # [B, H, n, d] of the layer before


class StageContext:
    """Implements `methods.Context` for one group of samples at one stage."""

    def __init__(self, visible: Visible, budget: int, sources: Sources, ahead: Ahead | None = None) -> None:
        group = visible.group
        self.total, self.count, self.budget = group.total, visible.slots.shape[1], budget
        self.num_segments, self.max_segment, self.ordered = group.num_segments, group.max_segment, group.ordered
        self._visible, self._sources, self._ahead = visible, sources, ahead

    @functools.cached_property
    def saliency(self) -> Tensor:
        return self._sources.saliency()[self._flat]

    @functools.cached_property
    def features(self) -> Tensor:
        return self._sources.features()[self._flat]

    @functools.cached_property
    def positions(self) -> Tensor:
        return self._sources.positions()[self._flat]

    @functools.cached_property
    def segment(self) -> Tensor:
        return self._visible.group.segment.gather(1, self._visible.origin)

    @functools.cached_property
    def hidden(self) -> Tensor:
        return self._gather(self._sources.hidden)

    def key_norms(self, heads: str = "l2", source: str = "layer") -> Tensor:
        if source == "previous":
            keys = self._sources.cached_keys()
            if keys is not None:
                return ops.key_norms(self._gather(keys.transpose(1, 2)).transpose(1, 2), heads=heads)
        return self._sources.key_norms(self.hidden, self._gather, heads, source)

    def attention(self, source: str = "layer") -> Tensor:
        return self._gather(self._sources.attention(source))

    @property
    def ahead(self) -> Any:
        return None if self._ahead is None else self._ahead.result(self.total)

    @functools.cached_property
    def _flat(self) -> Tensor:
        """[G, V] rows of the vision features."""
        return self._visible.group.flat.gather(1, self._visible.origin)

    def _gather(self, x: Tensor) -> Tensor:
        """[B, n, ...] -> [G, V, ...]: what belongs to the visual tokens of the group."""
        rows, slots = self._visible.group.rows, self._visible.slots
        if rows is None:
            rows = torch.arange(slots.shape[0], device=slots.device)
        return x[rows[:, None], slots]
