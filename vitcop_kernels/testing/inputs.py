"""Inputs that look like what models give the ops, and small ones for tests."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

INF, NAN, HALF = math.inf, math.nan, torch.float16
FLOAT = "expected float32, bfloat16, float16 or float64"  # begins the error about another dtype


def tokens(n: int, width: int = 1024, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """Image-like features: smooth over the grid, noise on top; and the places in it."""
    generator = torch.Generator().manual_seed(n)
    side = math.ceil(n**0.5)
    coarse = torch.randn(batch or 1, width, 6, 6, generator=generator)
    smooth = (
        torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)[:, :n]
    )
    features = (0.3 * smooth + 0.15 * torch.randn(smooth.shape, generator=generator)).contiguous()
    index = torch.arange(n)
    places = torch.stack([index // side, index % side], -1) / side
    return (features if batch else features[0]), places


class Random:
    """Seeded tensors, made on the CPU so that every device gets the same."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype or self.dtype)

    def labels(self, batch: int, n: int, clusters: int) -> Tensor:
        return torch.randint(0, clusters, (batch, n), generator=self.generator)

    def keys(self, batch: int, heads: int, n: int, d: int) -> Tensor:
        """[B, H, N, d] as a projection leaves them: token by token."""
        return self.normal(batch, n, heads, d).transpose(1, 2)

    def plan(self, batch: int, n: int, budget: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        clusters = max(1, budget // 5)
        scores = torch.rand(batch, n, generator=self.generator)
        return torch.ops.vitcop_reference.plan_tokens(self.labels(batch, n, clusters), scores, clusters, budget)

    def features(self, batch: int, n: int, width: int) -> tuple[Tensor, Tensor]:
        x, places = tokens(n, width, batch)
        return x.to(self.dtype), places


def normal(dtype: torch.dtype) -> Callable[..., Tensor]:
    """torch.randn in the dtype, from torch's own generator."""
    return lambda *shape: torch.randn(shape).to(dtype)


def f(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def i64(*shape: int) -> Tensor:
    return f(*shape, dtype=torch.int64)


def boolean(*shape: int) -> Tensor:
    return f(*shape, dtype=torch.bool)
