"""key_proj_norms on a GPU: the projection of ../key_proj/gemm.py without the keys, after an RMSNorm where asked."""

import torch
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels.ops.key_proj.gemm import finish_specs, project, projection_specs, rms_norm


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
    if hidden.dtype == torch.float64:
        return torch.ops.vitcop_reference.key_proj_norms(
            hidden, weight, bias, rms_weight, rms_eps=rms_eps, num_heads=num_heads, heads=heads
        )
    x = hidden if hidden.dim() == 3 else hidden[None]
    if rms_weight is not None:
        x = rms_norm(x, rms_weight, rms_eps)
    norms = project(x, weight, bias, num_heads, heads, want_keys=False)[1]
    return norms if hidden.dim() == 3 else norms[0]


def aot_specs() -> list[AotSpec]:
    return projection_specs("key_proj_norms", want_keys=False) + finish_specs()
