"""LLaVA-NeXT: an image is a small base picture and AnyRes tiles, put together, cut to its shape, with line breaks."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitcop.engine.layout import grid_positions

from .base import Removable
from .encoded import Replacement
from .tower import TileTokens, TowerAdapter


class LlavaNextAdapter(TowerAdapter):
    """Segments of an image: the base picture, then the tiles in raster order, then the line breaks (`image_newline`).

    Line breaks come from no patch. With NaN for their saliency Stage I drops them first; those that are left (of
    images hardly pruned) cluster among themselves, and merge with no patch.
    """

    def watch_tower(self) -> Iterable[Removable]:
        def pack_image_features(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self.encodings:
                self.pack(self.encodings[-1].tokens, original, inspect.signature(original).bind(*args, **kwargs))
            return original(*args, **kwargs)

        yield from super().watch_tower()
        yield Replacement(self.owner, "pack_image_features", pack_image_features)

    def pack(self, tokens: TileTokens, original: Callable[..., Any], call: inspect.BoundArguments) -> None:
        """Turn tiles into the tokens that `pack_image_features` makes of them when called as `call` says.

        The sizes of the images are copied to the host, once.
        """
        tiles = [len(features) for features in call.arguments["image_features"]]
        sizes = call.arguments["image_sizes"]
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        has_breaks = call.arguments.get("image_newline") is not None
        call.arguments["image_features"] = None  # not kept

        def arrange_images(x: Tensor) -> Sequence[Tensor]:
            changed = inspect.BoundArguments(call.signature, call.arguments.copy())
            changed.arguments["image_features"] = x.split(tiles)
            changed.arguments["image_sizes"] = sizes
            if has_breaks:
                changed.arguments["image_newline"] = x.new_full(x.shape[-1:], math.nan)
            packed: Sequence[Tensor] = original(*changed.args, **changed.kwargs)[0]
            return packed

        columns = [self.tile_columns(size, n) for size, n in zip(sizes, tiles, strict=True)]
        images = arrange_images(torch.cat([self.places(n, c) for n, c in zip(tiles, columns, strict=True)]))
        found = [self.locate(*image) for image in zip(images, tiles, columns, strict=True)]
        tokens.image_tokens = [len(image) for image in images]
        tokens.part = torch.cat([part for part, _ in found])
        tokens.place = torch.cat([place for _, place in found]).to(tokens.run.keys.device, non_blocking=True)
        tokens.arrange = lambda x: torch.cat(list(arrange_images(x)))

    def tile_columns(self, size: Sequence[int], tiles: int) -> int:
        """How many tiles stand side by side in an image of a size (height, width)."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        if tiles == 1:
            return 1
        config = self.config
        return get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)[1]

    def places(self, tiles: int, columns: int) -> Tensor:
        """[tiles, N, 2] float64: where patches are in the plane of the tiles, one tile long. The base is above it."""
        inside = grid_positions(*self.grid, torch.device("cpu")).double()
        number = torch.arange(tiles, device="cpu") - 1
        corner = torch.stack([number.div(columns, rounding_mode="floor"), number % columns], dim=1)
        corner[0] = torch.tensor([-1, 0], device="cpu")
        return corner[:, None] + inside

    def locate(self, place: Tensor, tiles: int, columns: int) -> tuple[Tensor, Tensor]:
        """Segment [t] and position [t, 2] within it of places in the plane of the tiles; NaN is a line break."""
        corner = place.floor()
        part = torch.where(corner[:, 0] < 0, 0, 1 + corner[:, 0] * columns + corner[:, 1])
        return part.nan_to_num(nan=tiles).long(), (place - corner).float()
