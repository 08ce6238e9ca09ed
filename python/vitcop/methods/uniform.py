"""Every n-th token: the other baseline that every method has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Context
from .schedule import SameSchedule


@dataclass
class Uniform(SameSchedule):
    """`Uniform(schedule_of=FastV(retain=64))` or `Uniform(retain=64)`: tokens `floor((i + 1/2) * V / S)` of V, which is
    a constant stride over the raster."""

    def choose(self, number: int, ctx: Context) -> Tensor:
        outputs = torch.arange(ctx.budget, device=ctx.segment.device)
        chosen = ((2 * outputs + 1) * ctx.count).div(2 * ctx.budget, rounding_mode="floor")
        return chosen.expand(ctx.segment.shape[0], -1).contiguous()
