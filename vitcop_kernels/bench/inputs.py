"""Inputs that look like what models give the ops."""

import math

import torch
from torch import Tensor


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
