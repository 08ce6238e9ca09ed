"""key_proj_norms: key norms straight from hidden states; the keys are never stored."""

import math

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels._order import acc_dtype
from vitcop_kernels.ops.key_proj.op import check as check_projection

from . import reference

OP = "key_proj_norms"


def check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    rms_weight: Tensor | None = None,
    *,
    rms_eps: float = 1e-6,
    num_heads: int,
    heads: str = "l2",
) -> None:
    check_projection(hidden, weight, bias, num_heads=num_heads, heads=heads, op=OP)
    if rms_weight is not None:
        checks.same_dtype(OP, "rms_weight", rms_weight, "hidden", hidden.dtype)
        checks.same_device(OP, "rms_weight", rms_weight, "hidden", hidden.device)
        checks.shape_is(OP, "rms_weight", rms_weight, (hidden.shape[-1],))
    if not (rms_eps >= 0 and math.isfinite(rms_eps)):
        checks.fail(OP, "rms_eps", "a finite number, at least 0", f"{rms_eps:g}")


def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    rms_weight: Tensor | None = None,
    *,
    rms_eps: float = 1e-6,
    num_heads: int,
    heads: str = "l2",
) -> Tensor:
    return hidden.new_empty(hidden.shape[:-1], dtype=acc_dtype(hidden.dtype))


register(
    "key_proj_norms(Tensor hidden, Tensor weight, Tensor? bias=None, Tensor? rms_weight=None, *, float rms_eps=1e-6, "
    'int num_heads, str heads="l2") -> Tensor',
    check=check,
    reference=reference.key_proj_norms,
    fake=_fake,
    cuda="vitcop_kernels.ops.key_proj_norms.kernel",
)


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
    """Norms of the keys that `hidden` would get (Eq. 4), without storing the keys.

    With `rms_weight` the decoder's RMSNorm comes first, folded in: its factor per row is a scalar, so without a bias
    `norm = rstd * |(x * rms_weight) W^T|`.

    Args:
        hidden: `[B, N, C]` or `[N, C]`, float32, bfloat16 or float16, any strides.
        weight: `[H*d, C]`, the weight of `k_proj`; bias: `[H*d]` or None; rms_weight: `[C]` or None; all of
            `hidden`'s dtype.
        rms_eps: epsilon of the RMSNorm, at least 0.
        num_heads: `H`, the number of key heads. heads: "l2" or "mean", see `key_norms`.

    Returns:
        `[B, N]` or `[N]`, float32; a smaller norm means a more salient token. NaN and inf in a row stay in that row;
        with `heads="mean"` heads of +inf and -inf may give inf, not NaN. Keys may be rounded to the dtype of `hidden`,
        and where the matrix product is the library's, bfloat16 numbers below float32's normal range (2^-126) may count
        as 0.

    Raises:
        ValueError, TypeError: shapes that do not fit, unknown options, dtypes other than the above.

    Not differentiable: a gradient asked through it raises RuntimeError.
    """
    return torch.ops.vitcop.key_proj_norms(
        hidden, weight, bias, rms_weight, rms_eps=rms_eps, num_heads=num_heads, heads=heads
    )
