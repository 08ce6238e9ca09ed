"""Random plans for the tests of what works on segments."""

import torch
from torch import Tensor


def plan(n: int, segments: int, batch: int = 0, dropped: int = 0) -> tuple[Tensor, ...]:
    """A random CSR of n tokens with empty segments among others: perm, offsets, anchors, merged."""
    if batch:
        return tuple(torch.stack(t) for t in zip(*(plan(n, segments, 0, dropped) for _ in range(batch)), strict=True))
    perm = torch.randperm(n)
    cuts = torch.randint(0, n - dropped + 1, (max(segments - 1, 0),)).sort().values
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), cuts, torch.tensor([n - dropped])])[: segments + 1]
    lengths = offsets.diff()
    anchors = perm[(offsets[:-1] + lengths // 2).clamp(max=n - 1)].masked_fill(lengths == 0, -1)
    return perm, offsets, anchors, lengths > 1
