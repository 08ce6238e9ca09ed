"""LLaVA-1.5: one image is one run of CLIP, whose patches without [CLS] are the visual tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import vitcop_kernels as ops
from vitcop.layout import grid_positions

from .base import VISION, Adapter, VisualTokens, feature_layer, tower_layers


@dataclass
class ClipTokens:
    """What a CLIP layer computed for n images: `query [n, H*d]` of [CLS], `keys [n, 1+N, H*d]` of [CLS] and patches."""

    query: Tensor
    keys: Tensor
    num_heads: int
    scale: float
    grid: tuple[int, int]
    kind: str = "image"
    output: Tensor | None = None  # [n, 1+N, D] what the layer made of [CLS] and patches; None: not what is projected

    @property
    def image_tokens(self) -> Sequence[int]:
        return [self.keys.shape[1] - 1] * self.keys.shape[0]

    def segments(self) -> Tensor:
        return torch.zeros(sum(self.image_tokens), dtype=torch.int64)

    def saliency(self) -> Tensor:
        """Eq. 1: softmax over [CLS] and patches, summed over heads; [CLS]' own share is left out afterwards."""
        query = self.query[:, None].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [n, H, 1, d]
        keys = self.keys.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [n, H, 1+N, d]
        return ops.attention_saliency(query, keys, scale=self.scale)[:, 1:].flatten()

    def features(self) -> Tensor:
        return self.keys[:, 1:].flatten(0, 1)

    def positions(self) -> Tensor:
        return grid_positions(*self.grid, self.keys.device).repeat(self.keys.shape[0], 1)

    def states(self) -> Tensor:
        return self._output()[:, 1:].flatten(0, 1)

    def cls_states(self) -> Tensor | None:
        return self._output()[:, 0]

    def _output(self) -> Tensor:
        if self.output is None:
            raise NotImplementedError(
                "vision_feature_layer: expected one layer, for a method that works before the projector, got several"
            )
        return self.output


class LlavaAdapter(Adapter):
    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        vision = self.config.vision_config
        if self.config.vision_feature_select_strategy != "default":
            raise NotImplementedError(
                "vision_feature_select_strategy: expected 'default' (patches without [CLS]), got "
                f"{self.config.vision_feature_select_strategy!r}"
            )
        layers = tower_layers(self.owner.vision_tower)
        self.layer = feature_layer(layers, self.config.vision_feature_layer)
        self.attention = self.layer.self_attn
        if not all(hasattr(self.attention, name) for name in ("q_proj", "k_proj", "num_heads", "scale")):
            raise NotImplementedError(f"vision_tower: expected CLIP, got attention of {type(self.attention).__name__}")
        side = vision.image_size // vision.patch_size
        self.grid = side, side

    def project(self, states: Tensor) -> Tensor:
        projected: Tensor = self.owner.multi_modal_projector(states)
        return projected

    def watch(self, tower_outputs: list[VisualTokens]) -> Iterable[RemovableHandle]:
        seen: dict[str, Tensor] = {}

        def keep_query(module: nn.Module, args: Any, output: Tensor) -> None:
            seen["query"] = output[:, 0].detach()

        def keep_keys(module: nn.Module, args: Any, output: Tensor) -> None:
            seen["keys"] = output.detach()

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            seen["output"] = output[0] if isinstance(output, tuple) else output

        def after_tower(module: nn.Module, args: Any, output: Any) -> None:
            attention = self.attention
            tokens = ClipTokens(
                seen.pop("query"), seen.pop("keys"), attention.num_heads, attention.scale, self.grid,
                output=seen.pop("output") if isinstance(self.config.vision_feature_layer, int) else None,
            )  # fmt: skip
            if len(tokens.image_tokens) and tokens.image_tokens[0] != self.grid[0] * self.grid[1]:
                rows, cols = self.grid
                raise NotImplementedError(
                    f"pixel_values: expected images of {rows}x{cols} patches, got {tokens.image_tokens[0]} patches"
                )
            tower_outputs.append(tokens)
            if isinstance(output, dict):
                output[VISION] = tokens

        yield self.attention.q_proj.register_forward_hook(keep_query)
        yield self.attention.k_proj.register_forward_hook(keep_keys)
        yield self.layer.register_forward_hook(keep_output)
        yield self.owner.vision_tower.register_forward_hook(after_tower)
