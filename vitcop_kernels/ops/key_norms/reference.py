"""Eq. 4: the L2 norm of a token's key over all heads. The truth that kernels are tested against."""

import torch
from torch import Tensor

from vitcop_kernels._order import acc_dtype


def norms_of(keys: Tensor, heads: str) -> Tensor:
    """[..., H, N, d] float64 -> [..., N]."""
    if heads == "mean":
        return keys.mean(dim=-3).square().sum(dim=-1).sqrt()
    return keys.square().sum(dim=(-3, -1)).sqrt()


def key_norms(keys: Tensor, *, heads: str = "l2") -> Tensor:
    return norms_of(keys.to(torch.float64), heads).to(acc_dtype(keys.dtype))
