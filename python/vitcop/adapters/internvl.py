"""InternVL: an image is one or more tiles, each one run of InternViT, four of whose patches make a token."""

import math
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops
from vitcop.engine.hooks import Seen, Uncompiled, uncopied, untraced
from vitcop.engine.layout import grid_positions

from .base import VISION, Adapter, Removable, VisualTokens, feature_layer


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
        return torch.zeros(sum(self.image_tokens), dtype=torch.int64)

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
        config = self.config
        if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
            raise NotImplementedError(
                "vision_feature_select_strategy, vision_feature_layer: expected 'default' (patches without [CLS]) of "
                f"one layer, got {config.vision_feature_select_strategy!r} of {config.vision_feature_layer}"
            )
        self.layer = feature_layer(self.owner.vision_tower.encoder.layer, config.vision_feature_layer)

    def project(self, states: Tensor) -> Tensor:
        projected: Tensor = self.owner.multi_modal_projector(states)
        return projected

    def watch(self, tower_outputs: MutableSequence[VisualTokens]) -> Iterable[Removable]:
        seen: Seen[Tensor] = Seen()
        attention = self.layer.attention

        def keep_query(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.put("query", output[:, 0].detach().clone())  # a view would keep the queries of all patches

        def keep_keys(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.put("keys", output.detach())

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            seen.put("output", output[0] if isinstance(output, tuple) else output)

        def shuffle(patches: Tensor) -> Tensor:
            shuffled: Tensor = self.owner.pixel_shuffle(patches, scale_factor=self.config.downsample_ratio)
            return shuffled

        def after_tower(module: nn.Module, args: Any, output: Any) -> None:
            last = self.config.vision_feature_layer == -1
            states = seen.take("output")
            tokens = ShuffledTokens(
                seen.take("query"), seen.take("keys"), output[0] if last else states, attention.num_heads,
                attention.scale, shuffle,
            )  # fmt: skip
            patches = tokens.keys.shape[1] - 1
            if math.isqrt(patches) ** 2 != patches:
                raise NotImplementedError(f"pixel_values: expected square tiles, got tiles of {patches} patches")
            tower_outputs.append(tokens)
            if isinstance(output, dict):
                output[VISION] = tokens

        yield Uncompiled(self.layer)
        yield attention.q_norm.register_forward_hook(uncopied(keep_query))
        yield attention.k_norm.register_forward_hook(uncopied(keep_keys))
        yield self.layer.register_forward_hook(uncopied(keep_output))
        yield self.owner.vision_tower.register_forward_hook(untraced(after_tower))
