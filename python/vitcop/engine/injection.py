"""Vision features that a decoder adds to its visual tokens after its first layers, on their way through pruning."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcop.methods.base import Plan

from .compaction import Compaction


class Injection:
    """What is still to be added, slot by slot of the current sequence.

    A dropped token's features go with it. A merged token gets the features of its members merged as the tokens were,
    which is what it would have if they had been added before: adding and merging are linear.

    Args:
        features: one `[T, C]` per layer, of the T visual tokens of all samples in their order.
        visual: `[B, n]` bool on the host, where those tokens are.
    """

    def __init__(self, features: Sequence[Tensor], visual: np.ndarray[Any, Any], device: torch.device) -> None:
        self.features = list(features)
        rows = np.where(visual, visual.cumsum().reshape(visual.shape) - 1, -1)
        self.row = torch.from_numpy(rows).to(device, non_blocking=True)  # [B, n] of the features, -1: none
        self.merged: dict[int, Tensor] = {}  # after a merge: [B, n, C] for each layer to come

    def add(self, layer: int, hidden: Tensor) -> Tensor:
        """The output of a layer `[B, n, C]` with its features added. Layers are asked for in order."""
        return hidden if layer >= len(self.features) else hidden + self._of(layer, hidden)

    def compact(self, compaction: Compaction, plans: Iterable[Plan], layer: int, hidden: Tensor) -> None:
        """Follow the tokens to a shortened sequence, in front of `layer`; `hidden` is for dtype and device."""
        to_come = range(layer, len(self.features))
        if not to_come:
            return
        if any(plan.selection() is not plan for plan in plans):
            raise NotImplementedError(
                "method: expected one that keeps tokens, or means of them, in their order before decoder layer "
                f"{len(self.features)}, up to which the model adds vision features to them, got one that replaces them"
            )
        if compaction.merges:
            self.merged = {later: compaction.hidden(self._of(later, hidden)) for later in to_come}
        else:
            self.merged = {later: compaction.gather(self.merged[later]) for later in to_come if later in self.merged}
        self.row = compaction.gather(self.row)

    def _of(self, layer: int, hidden: Tensor) -> Tensor:
        """[B, n, C], 0 for text."""
        if layer in self.merged:
            return self.merged[layer]
        features, row = self.features[layer].to(hidden), self.row.to(hidden.device)
        return torch.where(row[..., None] < 0, 0, features[row.clamp(min=0)])
