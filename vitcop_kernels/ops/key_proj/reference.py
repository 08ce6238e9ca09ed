"""The key projection with its norms: a linear layer, then Eq. 4."""

import torch
from torch import Tensor

from vitcop_kernels._order import acc_dtype
from vitcop_kernels.ops.key_norms.reference import norms_of


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int) -> Tensor:
    """[..., N, C] -> keys [..., H, N, d], the transposed view of a contiguous [..., N, H, d]."""
    keys = torch.nn.functional.linear(hidden, weight, bias)
    return keys.unflatten(-1, (num_heads, weight.shape[0] // num_heads)).transpose(-3, -2)


def key_proj(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_heads: int, heads: str = "l2"
) -> tuple[Tensor, Tensor]:
    wide_bias = None if bias is None else bias.to(torch.float64)
    keys = project(hidden.to(torch.float64), weight.to(torch.float64), wide_bias, num_heads)
    return keys.to(hidden.dtype), norms_of(keys, heads).to(acc_dtype(hidden.dtype))
