"""Where a case's choices come from: numpy's generator in bulk runs, hypothesis in its tests."""

import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
MOST_TOKENS = 4096
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Draw:
    """Every choice of one case, from (op, seed) alone.

    A `small` case is one that the Triton kernels also get, in the interpreter: a few dozen tokens, seldom more.
    """

    def __init__(self, op: str, seed: int, small: bool = False) -> None:
        self.rng = np.random.default_rng([zlib.crc32(op.encode()), seed])
        self.small = small
        self.marks: set[str] = set()  # what else is worth counting: strides, edges of sizes

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def chance(self, one_in: int) -> bool:
        return self.integer(1, one_in) == one_in

    def size(self, most: int, least: int = 1) -> int:
        """Log-distributed in [least, most]."""
        exponent = self.integer(least.bit_length() - 1, max(most, 1).bit_length() - 1)
        return max(least, min(most, self.integer(2**exponent, 2 ** (exponent + 1) - 1)))

    def tokens(self, square: bool = False) -> int:
        """1 to 4096; where the work is `square` in them, one case in a hundred has more than 512."""
        if self.small:
            return self.size(self.pick([40] * 9 + [160]))
        if square:
            return self.size(self.pick([128] * 90 + [512] * 9 + [MOST_TOKENS]))
        return self.size(MOST_TOKENS)

    def batch(self, work: int = 0) -> tuple[int, ...]:
        """() for no batch dimension; fewer samples where one is much work; now and then none at all."""
        if self.chance(200):
            self.marks.add("no sample in the batch")
            return (0,)
        return self.pick([(), (1,), (2,)] if self.small or work > 2**16 else [(), (), (1,), (2,), (3,), (5,)])

    def dtype(self) -> torch.dtype:
        return self.pick([*FLOATS[:3] * 5, FLOATS[3]])

    def edge(self, low: int, high: int) -> int:
        """An integer in [low, high], often one of its ends or next to one."""
        if self.chance(3):
            self.marks.add("count or budget at an edge")
            return min(high, max(low, self.pick([low, low + 1, high - 1, high])))
        return self.integer(low, high)

    def laid_out(self, t: Tensor, batched: bool = False) -> Tensor:
        """The same values at strides of some kind, gaps filled with NaN; `batched` may repeat the first sample."""
        kinds = ["contiguous"] * 5 + ["transposed", "first dimension last", "every other column", "slice", "unaligned"]
        if batched and t.dim() > 1 and t.shape[0] > 1:
            kinds.append("expanded")
        kind = self.pick(kinds)
        self.marks.add(f"strides: {kind}")
        if kind == "transposed" and t.dim() >= 2:
            return t.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind == "first dimension last":
            return t.movedim(0, -1).contiguous().movedim(-1, 0)
        if kind in ("every other column", "slice"):
            width = 2 * t.shape[-1] + 1 if kind != "slice" else t.shape[-1] + 3
            columns = slice(1, None, 2) if kind != "slice" else slice(3, None)
            room = t.new_full((*t.shape[:-1], width), float("nan") if t.is_floating_point() else 1)
            room[..., columns] = t
            return room[..., columns]
        if kind == "unaligned":
            return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)
        if kind == "expanded":
            return t[:1].expand(t.shape)
        return t.contiguous()

    def normal(self, *shape: int) -> Any:
        return self.rng.standard_normal(shape)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Any:
        """An array of integers in [low, high]."""
        return self.rng.integers(low, high, tuple(shape), endpoint=True)
