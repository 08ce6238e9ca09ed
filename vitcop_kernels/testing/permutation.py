"""What permuting the tokens of a call does to its answer, stated for each op and checked on inputs without ties."""

from typing import Any

import torch
from torch import Tensor

from .verdicts import flat, same

Outcome = str  # "same bits", "same answer" (equal to rounding, or the same partition) or "another answer"


class Shuffle:
    """A permutation of n tokens: new token i is old token `order[i]`. Random inputs come from its generator."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.generator = n, torch.Generator().manual_seed(seed)
        self.order = torch.randperm(n, generator=self.generator)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(n)

    def renamed(self, index: Tensor) -> Tensor:
        """Old indices as new ones; -1 stays."""
        return torch.where(index < 0, index, self.place[index.clamp(min=0)])

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def distinct(self) -> Tensor:
        return torch.randperm(self.n, generator=self.generator).float()


def outcome(got: Any, want: Any, dtype: torch.dtype | None = None) -> Outcome:
    """`dtype`: of numbers, which may be sums in another order; None: indices."""
    if same(got, want):
        return "same bits"
    if dtype is None:
        return "another answer"
    eps, pairs = 64 * torch.finfo(dtype).eps, zip(flat(got), flat(want), strict=True)
    near = (
        torch.allclose(a.double(), b.double(), rtol=eps, atol=eps * float(b.double().abs().max())) for a, b in pairs
    )
    return "same answer" if all(near) else "another answer"
