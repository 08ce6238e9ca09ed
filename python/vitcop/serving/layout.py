"""Where the tokens of an image come from: patches of its tiles, in the order that the model gives them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcop.engine.layout import grid_positions


@dataclass(frozen=True, eq=False)
class Layout:
    """Of one shape of images; V tokens. The same object for the same shape, so that such images go together."""

    tiles: int  # that tokens come from; an image may have more, which are padding
    index: Tensor  # [V] int64, on the CPU: patch within the tiles laid end to end; -1: a line break, of no patch
    segment: Tensor  # [V] int64: tile of each token; line breaks are one segment more
    positions: Tensor  # [V, 2] (row, col)/grid within the tile; NaN for line breaks

    @property
    def count(self) -> int:
        return len(self.index)

    @functools.cached_property
    def num_segments(self) -> int:
        return int(self.segment.max()) + 1

    @functools.cached_property
    def max_segment(self) -> int:
        return int(self.segment.bincount().max())

    @functools.cached_property
    def ordered(self) -> bool:
        return bool((self.segment.diff() >= 0).all())

    def arrange(self, x: Tensor, first: Sequence[int]) -> Tensor:
        """`[tiles of many images, N, D]` -> `[G, V, D]` of the images whose tiles begin at `first`; NaN at breaks."""
        begin = torch.tensor(first, device="cpu")[:, None] * x.shape[1]
        index = torch.where(self.index < 0, len(x) * x.shape[1], self.index + begin).to(x.device)
        return torch.cat([x.flatten(0, 1), x.new_full((1, x.shape[-1]), float("nan"))])[index]


def _layout(index: Tensor, tiles: int, rows: int, columns: int) -> Layout:
    patch, tile = index % (rows * columns), index.div(rows * columns, rounding_mode="floor")
    broken = index < 0
    places = grid_positions(rows, columns, index.device)[patch]
    return Layout(
        tiles, index, torch.where(broken, tiles, tile), places.masked_fill(broken[:, None], float("nan"))
    )  # fmt: skip


@functools.cache
def one_tile(side: int) -> Layout:
    """LLaVA-1.5: the patches of a tower with side x side of them."""
    return _layout(torch.arange(side * side, device="cpu"), 1, side, side)


@functools.lru_cache(maxsize=4096)
def anyres(height: int, width: int, rows: int, columns: int, side: int) -> Layout:
    """LLaVA-NeXT: the base picture, then the plane of rows x columns tiles without what pads a picture of height x
    width in it, a line break behind each of its lines."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    base = torch.arange(side * side, device="cpu")
    tile = torch.arange(rows * columns, device="cpu").view(rows, columns, 1, 1)
    plane = (base + len(base)).view(side, side) + len(base) * tile
    plane = unpad_image(plane.transpose(1, 2).reshape(1, rows * side, columns * side), (height, width))[0]
    lines = torch.nn.functional.pad(plane, (0, 1), value=-1)
    return _layout(torch.cat([base, lines.flatten()]), 1 + rows * columns, side, side)
