"""Decoding steps of a padded batch after a pruned prefill.

Layers of a pruned cache hold as many columns as their segment of the prefill left, each with its own padding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cache import Pruned, layer_length, segments
from .decoder_keys import in_fsdp
from .hooks import Current, Stands
from .masks import additive

SLACK = 128
"""Tokens that are decoded before the mask of a segment is made anew."""


class DecodingStep:
    """One token for each sample. All layers share one mask, whose content changes in front of each segment."""

    def __init__(self, kind: str, embeds: Tensor, current: Current) -> None:
        self._kind, self._batch, self._dtype, self._device = kind, embeds.shape[0], embeds.dtype, embeds.device
        self._stands = Stands(self, current)

    def start(self, decoder: Any, cache: Any) -> Tensor:
        """`[B, 1, 1, columns]`, the mask of the first layer. The others get theirs until `end()`."""
        shared = torch.empty(0, dtype=self._mask_dtype, device=self._device)
        for index, _ in segments(cache, 0, len(cache.layers)):
            mask = self._mask(cache.layers[index].pruned, layer_length(cache, index) + 1)
            if index == 0:
                shared.set_(mask)  # type: ignore[call-overload]
            else:
                self._stands.put(in_fsdp(decoder.layers[index]), _Change(shared, mask))
        return shared

    def end(self) -> None:
        """Let go of the layers; calling it again does nothing."""
        self._stands.remove()

    def cancel(self) -> None:
        """The step may finish: it does not depend on the pruning's hooks."""

    @property
    def _mask_dtype(self) -> torch.dtype:
        return self._dtype if self._kind == "eager" else torch.bool

    def _mask(self, state: Pruned, columns: int) -> Tensor:
        """[B, 1, 1, columns]"""
        mask = state.mask
        fits = mask is not None and mask.shape[0] == self._batch and mask.shape[3] >= columns
        if mask is None or not fits or mask.dtype != self._mask_dtype:
            allowed = torch.ones(self._batch, 1, 1, columns + SLACK, dtype=torch.bool, device=self._device)
            if state.valid is not None:
                allowed[:, 0, 0, : state.valid.shape[1]] = state.valid
            state.mask = mask = allowed if self._kind == "sdpa" else additive(allowed, self._dtype)
        return mask[..., :columns]


class _Change:
    """In front of the first layer of a segment: the mask that all layers share becomes that of the segment."""

    def __init__(self, shared: Tensor, mask: Tensor) -> None:
        self._shared, self._mask = shared, mask

    def __call__(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        self._shared.set_(self._mask)  # type: ignore[call-overload]
        return forward(*args, **kwargs)
