"""What an adapter offers of a run of the vision tower, and the runs of a prompt joined."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

KINDS = ("image", "video")
"""What a placeholder of a prompt can stand for."""


class VisualTokens(Protocol):
    """The visual tokens of one run of the vision tower, T in all, in the order of the prompt's placeholders.

    Tokens that the model adds between those of the tower (line breaks) have NaN for everything but a segment: they rank
    last, and are like nothing else.
    """

    @property
    def kind(self) -> str:
        """Which placeholders they take: "image" or "video"."""

    @property
    def image_tokens(self) -> Sequence[int]:
        """Tokens of each image or video. With an attribute `are_tiles = True`, of each tile: those with no token
        between their placeholders are one image."""

    def segments(self) -> Tensor:
        """[T] int64, on the CPU and computed from shapes: which part (tile, frame) of its image or video a token is
        from, counted from 0. Segments are clustered one by one."""

    def saliency(self) -> Tensor:
        """[T] attention received, larger is more salient."""

    def features(self) -> Tensor:
        """[T, D] what ViTCoP clusters."""

    def positions(self) -> Tensor:
        """[T, 2] (row, col)/grid within the segment, in [0, 1)."""


class TowerTokens(VisualTokens, Protocol):
    """What an adapter may offer besides, with `Adapter.project`, for methods that work before the projector."""

    num_heads: int  # of features()

    def states(self) -> Tensor:
        """[T, D] what the projector gets for each token; NaN for tokens that no patch made."""

    def cls_states(self) -> Tensor | None:
        """[images, D] the same of the [CLS] tokens; None for towers without, and where an image has several."""


class Projector(Protocol):
    """The part of an adapter that methods before the projector need."""

    def project(self, states: Tensor) -> Tensor:
        """[..., D] hidden states of the vision tower -> [..., C] input of the decoder."""


class Vision:
    """What runs of the vision tower left, joined when asked for. T: visual tokens of all images."""

    def __init__(self, adapter: Projector, tokens: Sequence[VisualTokens], device: torch.device) -> None:
        self._adapter, self._tokens, self._device = adapter, tokens, device
        self._known: dict[tuple[str, bool], Tensor | None] = {}  # by name, and whether gradients flow

    def get(self, name: str) -> Tensor:
        """saliency [T], features [T, D], positions [T, 2], or states [T, D]."""
        tensor = self.get_optional(name)
        assert tensor is not None
        return tensor

    def get_optional(self, name: str) -> Tensor | None:
        """The same and cls_states [images, D], which may be None."""
        key = name, torch.is_grad_enabled()
        if key not in self._known:
            self._known[key] = self._joined([self._offered(tokens, name)() for tokens in self._tokens])
        return self._known[key]

    def _joined(self, parts: list[Tensor | None]) -> Tensor | None:
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        joined = found[0] if len(found) == 1 else torch.cat(found)
        return joined if joined.device == self._device else joined.to(self._device)

    @property
    def count(self) -> int:
        """T"""
        return sum(sum(tokens.image_tokens) for tokens in self._tokens)

    @property
    def num_heads(self) -> int:
        return int(self._offered(self._tokens[0], "num_heads"))

    def project(self, states: Tensor) -> Tensor:
        return self._adapter.project(states)

    def _offered(self, tokens: VisualTokens, name: str) -> Any:
        if not hasattr(tokens, name):
            raise NotImplementedError(
                f"method: expected one that needs no hidden states of the vision tower, which "
                f"{type(self._adapter).__name__} does not offer"
            )
        return getattr(tokens, name)
