"""Random choice: what every method has to beat at the same schedule."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vitcop_kernels as ops

from .base import Context
from .schedule import SameSchedule

LOW = 0xFFFFFFFF


@dataclass
class Random(SameSchedule):
    """`Random(schedule_of=FastV(retain=64), seed=0)` or `Random(retain=64)`.

    The draw depends on the seed, the stage and the token's number alone: it is the same on every device, in every batch
    and for every prompt of a length. Average over several seeds.

    Raises:
        ValueError: a seed outside [0, 2^32).
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= LOW:
            raise ValueError(f"seed: expected a number in [0, 2^32), got {self.seed!r}")

    def choose(self, number: int, ctx: Context) -> Tensor:
        tokens = torch.arange(ctx.count, device=ctx.segment.device)
        drawn = mix(tokens ^ mix(self.seed ^ (number * 0x9E3779B9 & LOW)))
        scores = (drawn >> 8).float()  # 24 bits: exact
        return ops.select_tokens(scores.expand(ctx.segment.shape[0], -1), ctx.budget, largest=True)


def mix(x: Any) -> Any:
    """A bijective hash of 32-bit numbers, ints or int64 tensors (lowbias32); overflow leaves the low bits alike."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW
    return x ^ (x >> 16)
