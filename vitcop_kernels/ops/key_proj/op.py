"""key_proj: the key projection and the norms of its keys in one pass."""

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels._order import acc_dtype

from . import reference

OP = "key_proj"


def check(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_heads: int, heads: str = "l2", op: str = OP
) -> None:
    checks.floating(op, "hidden", hidden)
    checks.dims(op, "hidden", hidden, 2, 3, layout="[B, N, C] or [N, C]")
    checks.dims(op, "weight", weight, 2, layout="[H*d, C]")
    checks.same_dtype(op, "weight", weight, "hidden", hidden.dtype)
    checks.same_device(op, "weight", weight, "hidden", hidden.device)
    checks.shape_is(op, "weight", weight, (weight.shape[0], hidden.shape[-1]))
    checks.at_least(op, "num_heads", num_heads, 1)
    if weight.shape[0] % num_heads != 0 or weight.shape[0] == 0:
        checks.fail(op, "num_heads", f"a divisor of weight.shape[0] ({weight.shape[0]})", num_heads)
    if bias is not None:
        checks.same_dtype(op, "bias", bias, "hidden", hidden.dtype)
        checks.same_device(op, "bias", bias, "hidden", hidden.device)
        checks.shape_is(op, "bias", bias, (weight.shape[0],))
    checks.one_of(op, "heads", heads, "l2", "mean")


def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_heads: int, heads: str = "l2"
) -> tuple[Tensor, Tensor]:
    keys = hidden.new_empty((*hidden.shape[:-1], num_heads, weight.shape[0] // num_heads)).transpose(-3, -2)
    return keys, hidden.new_empty(hidden.shape[:-1], dtype=acc_dtype(hidden.dtype))


register(
    "key_proj(Tensor hidden, Tensor weight, Tensor? bias=None, *, "
    'int num_heads, str heads="l2") -> (Tensor keys, Tensor norms)',
    check=check,
    reference=reference.key_proj,
    fake=_fake,
    cuda="vitcop_kernels.ops.key_proj.kernel",
)


def key_proj(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_heads: int, heads: str = "l2"
) -> tuple[Tensor, Tensor]:
    """Project hidden states to keys and take the keys' norms (Eq. 4) in the same pass.

    Args:
        hidden: `[B, N, C]` or `[N, C]`, already normalised; float32, bfloat16 or float16, any strides.
        weight: `[H*d, C]`, the weight of `k_proj`, dtype of `hidden`.
        bias: `[H*d]` or None.
        num_heads: `H`, the number of key heads (fewer than query heads under GQA).
        heads: "l2" (Eq. 4) or "mean" (norm of the head-mean key), see `key_norms`.

    Returns:
        keys `[B, H, N, d]` in the dtype of `hidden`, laid out as Hugging Face lays them out (the transposed view of a
        contiguous `[B, N, H, d]`), and norms `[B, N]` in float32; a smaller norm means a more salient token. NaN and
        inf propagate. Norms may be those of the rounded keys. Where the matrix product is the library's, bfloat16
        numbers below float32's normal range (2^-126) may count as 0.

    Raises:
        ValueError, TypeError: shapes that do not fit, unknown options, dtypes other than the above.

    Not differentiable: a gradient asked through it raises RuntimeError.
    """
    return torch.ops.vitcop.key_proj(hidden, weight, bias, num_heads=num_heads, heads=heads)
