"""DivPrune (Alvar et al., CVPR 2025): the tokens that are least alike, whatever is asked."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Context
from .schedule import SameSchedule


@dataclass
class DivPrune(SameSchedule):
    """`DivPrune(retain=64)` as published: once, before the decoder, on projected features. With `schedule_of`, on the
    hidden states where another method prunes.

    Greedy maximum of the least distance (1 - cosine) between chosen tokens: first the token farthest from its nearest
    neighbour, then always the one farthest from all chosen so far (ties: the lower index).
    """

    def choose(self, number: int, ctx: Context) -> Tensor:
        return farthest_points(ctx.hidden, ctx.budget)


def farthest_points(features: Tensor, count: int) -> Tensor:
    """[G, V, D] -> [G, count] tokens, ascending.

    Each choice needs the one before, so this is a loop of `count` steps, each 4 launches on `[G, V]` that wait for
    nothing on the host. `G*V*V` float32 similarities are held (1.3 MB a sample at V = 576, 33 MB at 2880).
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    similarity = unit @ unit.mT  # [G, V, V]
    own = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    closest = similarity.masked_fill(own, -math.inf).amax(-1)  # to any other token; from then on, to any chosen one
    chosen = torch.zeros_like(closest, dtype=torch.bool)
    for step in range(count):
        pick = closest.masked_fill(chosen, math.inf).argmin(1, keepdim=True)  # [G, 1]
        row = similarity.gather(1, pick[..., None].expand(-1, -1, similarity.shape[-1]))[:, 0]
        closest = torch.maximum(closest, row) if step else row
        chosen = chosen.scatter(1, pick, True)
    return (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
