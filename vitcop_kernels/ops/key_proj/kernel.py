"""key_proj on a GPU: see gemm.py."""

import torch
from torch import Tensor

from vitcop_kernels._aot import AotSpec

from .gemm import project, projection_specs


def key_proj(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_heads: int, heads: str = "l2"
) -> tuple[Tensor, Tensor]:
    if hidden.dtype == torch.float64:
        return torch.ops.vitcop_reference.key_proj(hidden, weight, bias, num_heads=num_heads, heads=heads)
    batched = hidden if hidden.dim() == 3 else hidden[None]
    keys, norms = project(batched, weight, bias, num_heads, heads, want_keys=True)
    assert keys is not None
    keys = keys.transpose(1, 2)
    return (keys, norms) if hidden.dim() == 3 else (keys[0], norms[0])


def aot_specs() -> list[AotSpec]:
    return projection_specs("key_proj", want_keys=True)
