"""key_norms: how salient a token is, read off its key (Eq. 4)."""

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels._order import acc_dtype

from . import reference

OP = "key_norms"


def check(keys: Tensor, *, heads: str = "l2") -> None:
    checks.floating(OP, "keys", keys)
    checks.dims(OP, "keys", keys, 3, 4, layout="[B, H, N, d] or [H, N, d]")
    checks.at_least(OP, "keys.shape[-3] (heads)", keys.shape[-3], 1)
    checks.one_of(OP, "heads", heads, "l2", "mean")


def _fake(keys: Tensor, *, heads: str = "l2") -> Tensor:
    return keys.new_empty((*keys.shape[:-3], keys.shape[-2]), dtype=acc_dtype(keys.dtype))


register(
    'key_norms(Tensor keys, *, str heads="l2") -> Tensor',
    check=check,
    reference=reference.key_norms,
    fake=_fake,
    cuda="vitcop_kernels.ops.key_norms.kernel",
)


def key_norms(keys: Tensor, *, heads: str = "l2") -> Tensor:
    """L2 norm of every token's key, the text saliency of ViTCoP: a *smaller* norm means a more salient token.

    `heads="l2"` is Eq. 4, `|K_i| = sqrt(sum_h |K_i^(h)|^2)`; `heads="mean"` is `|mean_h K_i^(h)|`, as the authors
    released it.
    Both are the same before and after RoPE, since the heads of one token share one rotation.

    Args:
        keys: `[B, H, N, d]` or `[H, N, d]`, float32, bfloat16 or float16, any strides (a KV cache's layer as it is).
        heads: "l2" or "mean".

    Returns:
        `[B, N]` or `[N]`, float32. Right for huge and tiny values alike; NaN where a key holds NaN, inf where it
        holds inf.

    Raises:
        ValueError, TypeError: a shape, option or dtype other than the above.

    Not differentiable: a gradient asked through it raises RuntimeError.
    """
    return torch.ops.vitcop.key_norms(keys, heads=heads)
