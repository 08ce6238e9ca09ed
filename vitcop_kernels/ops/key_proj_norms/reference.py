"""RMSNorm, key projection and Eq. 4, with no rounding in between."""

import torch
from torch import Tensor

from vitcop_kernels._order import acc_dtype
from vitcop_kernels.ops.key_norms.reference import norms_of
from vitcop_kernels.ops.key_proj.reference import project


def key_proj_norms(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    rms_weight: Tensor | None = None,
    *,
    rms_eps: float = 1e-6,
    num_heads: int,
    heads: str = "l2",
) -> Tensor:
    x = hidden.to(torch.float64)
    if rms_weight is not None:
        x = x * (x.square().mean(dim=-1, keepdim=True) + rms_eps).rsqrt() * rms_weight.to(torch.float64)
    keys = project(x, weight.to(torch.float64), None if bias is None else bias.to(torch.float64), num_heads)
    return norms_of(keys, heads).to(acc_dtype(hidden.dtype))
