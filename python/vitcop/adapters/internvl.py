"""InternVL: an image is one or more tiles, each one run of InternViT, four of whose patches make a token."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops
from vitcop.engine.hooks import plain, untraced
from vitcop.engine.layout import grid_positions

from .base import Adapter, Encoding, Removable, feature_layer
from .watched import WatchedLayer, WatchedLayers


@dataclass
class ShuffledTokens:
    """What a layer of InternViT computed for n tiles of side x side patches."""

    query: Tensor  # [n, H*d] of [CLS]
    keys: Tensor  # [n, 1+N, H*d] of [CLS] and patches
    output: Tensor  # [n, 1+N, D] what becomes of them in front of the projector
    num_heads: int
    scale: float
    shuffle: Callable[[Tensor], Tensor]  # [n, side, side, C] -> [n, rows, cols, patches*C]: the model's own
    kind: str = "image"
    are_tiles = True  # nothing says which of them are one picture but where their placeholders stand

    @property
    def image_tokens(self) -> Sequence[int]:
        """A tile counts as an image."""
        rows, cols = self._grid
        return [rows * cols] * len(self.keys)

    def segments(self) -> Tensor:
        return torch.zeros(sum(self.image_tokens), dtype=torch.int64, device="cpu")

    def saliency(self) -> Tensor:
        """Eq. 1 for patches, the mean of a token's patches."""
        query = self.query[:, None].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [n, H, 1, d]
        keys = self.keys.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [n, H, 1+N, d]
        return self._mean(ops.attention_saliency(query, keys, scale=self.scale)[:, 1:, None])[:, 0]

    def features(self) -> Tensor:
        return self._mean(self.keys[:, 1:])

    def positions(self) -> Tensor:
        return grid_positions(*self._grid, self.keys.device).repeat(len(self.keys), 1)

    def states(self) -> Tensor:
        return self._shuffled(self.output[:, 1:]).flatten(0, 2)

    def cls_states(self) -> Tensor | None:
        return None  # too narrow for the projector

    @property
    def _grid(self) -> tuple[int, int]:
        rows, cols = self._shuffled(torch.empty(1, self.keys.shape[1] - 1, 1, device="meta")).shape[1:3]
        return rows, cols

    def _shuffled(self, patches: Tensor) -> Tensor:
        side = math.isqrt(patches.shape[1])
        return self.shuffle(patches.unflatten(1, (side, side)).contiguous())

    def _mean(self, patches: Tensor) -> Tensor:
        """[n, N, C] -> [T, C]"""
        squares = self._shuffled(patches).unflatten(-1, (-1, patches.shape[-1]))  # [n, rows, cols, patches, C]
        return squares.mean(-2, dtype=torch.promote_types(patches.dtype, torch.float32)).flatten(0, 2)


class InternVLAdapter(Adapter):
    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        self.check_options({})
        self._watched = WatchedLayers(self._watch)

    def project(self, states: Tensor) -> Tensor:
        projected: Tensor = self.owner.multi_modal_projector(states)
        return projected if self.embedding_scale == 1 else projected * self.embedding_scale

    def check_options(self, arguments: dict[str, Any]) -> None:
        strategy, index = (self.option(arguments, f"vision_feature_{name}") for name in ("select_strategy", "layer"))
        if strategy != "default" or not isinstance(index, int):
            raise NotImplementedError(
                "vision_feature_select_strategy, vision_feature_layer: expected 'default' (patches without [CLS]) of "
                f"one layer, got {strategy!r} of {index}"
            )
        self._number(arguments)

    def _number(self, arguments: dict[str, Any]) -> int:
        layers = self.owner.vision_tower.encoder.layer
        return feature_layer(layers, self.option(arguments, "vision_feature_layer"))

    def _watch(self, number: int) -> WatchedLayer:
        layer: Any = self.owner.vision_tower.encoder.layer[number]
        attention: Any = plain(layer).attention
        # Of the query a copy: a view would keep those of all patches.
        return WatchedLayer(layer, attention.q_norm, attention.k_norm, lambda query: query[:, 0].detach().clone())

    def begin(self, encoding: Encoding) -> None:
        self._watched.add(self._number(encoding.arguments))

    def watch_tower(self) -> Iterable[Removable]:
        def shuffle(patches: Tensor) -> Tensor:
            shuffled: Tensor = self.owner.pixel_shuffle(patches, scale_factor=self.config.downsample_ratio)
            return shuffled

        def after_tower(module: nn.Module, args: Any, output: Any) -> None:
            if not self.encodings:
                return self._watched.forget()
            arguments = self.encodings[-1].arguments
            number = self._number(arguments)
            query, keys, states = self._watched.take(number)
            last = self.option(arguments, "vision_feature_layer") == -1
            attention: Any = plain(self.owner.vision_tower.encoder.layer[number]).attention
            tokens = ShuffledTokens(
                query, keys, output[0] if last else states, attention.num_heads, attention.scale, shuffle
            )
            patches = tokens.keys.shape[1] - 1
            if math.isqrt(patches) ** 2 != patches:
                raise NotImplementedError(f"pixel_values: expected square tiles, got tiles of {patches} patches")
            self.encodings[-1].tokens = tokens

        yield self._watched
        self._watched.add(self._number({}))
        yield self.owner.vision_tower.register_forward_hook(untraced(after_tower))
