"""LLaVA-NeXT-Video: images as LLaVA-NeXT has them, and videos, whose frames are pooled (24x24 patches to 12x12)."""

import inspect
import math
from collections.abc import Callable, Iterable, MutableSequence
from typing import Any

import torch
from torch import Tensor

from vitcop.engine.layout import grid_positions

from .base import Removable, VisualTokens
from .llava_next import LlavaNextAdapter
from .tower import Replacement, TileTokens


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

    def watch(self, tower_outputs: MutableSequence[VisualTokens]) -> Iterable[Removable]:
        def get_video_features(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            call = inspect.signature(original).bind(*args, **kwargs)
            pixels = next(iter(call.arguments.values()))  # [videos, frames, 3, height, width]
            tokens: Any = tower_outputs[-1]
            self.split(tokens, *pixels.shape[:2])
            return result

        yield from super().watch(tower_outputs)
        yield Replacement(self.owner, "get_video_features", get_video_features)

    def split(self, tokens: TileTokens, videos: int, frames: int) -> None:
        """Turn tiles into the tokens of that many videos of that many frames."""
        place = self.pool(grid_positions(*self.grid, tokens.run.keys.device)[None])[0]
        breaks = self.line_breaks

        def arrange(x: Tensor) -> Tensor:
            pooled = self.pool(x).unflatten(0, (videos, frames)).flatten(1, 2)
            return torch.nn.functional.pad(pooled, (0, 0, 0, breaks), value=math.nan).flatten(0, 1)

        part = torch.arange(frames).repeat_interleave(len(place))
        part = torch.nn.functional.pad(part, (0, breaks), value=frames)
        tokens.kind, tokens.image_tokens = "video", [len(part)] * videos
        tokens.part = part.repeat(videos)
        tokens.place = torch.nn.functional.pad(place.repeat(frames, 1), (0, 0, 0, breaks), value=math.nan)
        tokens.place = tokens.place.repeat(videos, 1)
        tokens.arrange = arrange
