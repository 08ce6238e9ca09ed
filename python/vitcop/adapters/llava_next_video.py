"""LLaVA-NeXT-Video: images as LLaVA-NeXT has them, and videos, whose frames are pooled (24x24 patches to 12x12)."""

import math
from typing import Any

import torch
from torch import Tensor

from vitcop.engine.layout import grid_positions

from .base import Encoding
from .llava_next import LlavaNextAdapter
from .tower import TileTokens


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """Segments of a video: its frames, then the line breaks at its end, where the family has them.

    Saliency, keys and positions of a token are those of the patches it is pooled from, pooled in the same way.
    """

    line_breaks = 0  # tokens of `image_newline` after the last frame

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        mode = getattr(self.config, "spatial_pool_mode", "average")
        if mode not in ("average", "max"):
            raise NotImplementedError(
                f"spatial_pool_mode: expected 'average' or 'max', got {mode!r} (learned weights are for hidden states)"
            )

    def pool(self, x: Tensor) -> Tensor:
        """[frames, N, D] -> [frames, P, D], by the model's own code."""
        pooled: Tensor = self.owner.vision_resampler(x)
        return pooled

    def finish(self, encoding: Encoding) -> None:
        if encoding.kind == "video":
            pixels = next(iter(encoding.arguments.values()))  # [videos, frames, 3, height, width]
            self.split(encoding.tokens, *pixels.shape[:2])

    def split(self, tokens: TileTokens, videos: int, frames: int) -> None:
        """Turn tiles into the tokens of that many videos of that many frames."""
        place = self.pool(grid_positions(*self.grid, tokens.run.keys.device)[None])[0]
        breaks = self.line_breaks

        def arrange(x: Tensor) -> Tensor:
            pooled = self.pool(x).unflatten(0, (videos, frames)).flatten(1, 2)
            return torch.nn.functional.pad(pooled, (0, 0, 0, breaks), value=math.nan).flatten(0, 1)

        part = torch.arange(frames, device="cpu").repeat_interleave(len(place))
        part = torch.nn.functional.pad(part, (0, breaks), value=frames)
        tokens.kind, tokens.image_tokens = "video", [len(part)] * videos
        tokens.part = part.repeat(videos)
        tokens.place = torch.nn.functional.pad(place.repeat(frames, 1), (0, 0, 0, breaks), value=math.nan)
        tokens.place = tokens.place.repeat(videos, 1)
        tokens.arrange = arrange
