"""attention_saliency: the attention that tokens receive from a few query rows (Eq. 1)."""

import math

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels._order import acc_dtype

from . import reference

OP = "attention_saliency"


def check(query: Tensor, key: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> None:
    checks.floating(OP, "query", query)
    checks.dims(OP, "query", query, 3, 4, layout="[B, Hq, M, d] or [Hq, M, d]")
    checks.same_dtype(OP, "key", key, "query", query.dtype)
    checks.same_device(OP, "key", key, "query", query.device)
    checks.dims(OP, "key", key, query.dim(), layout="[B, Hkv, N, d] or [Hkv, N, d], as query")
    checks.shape_is(OP, "key", key, (*query.shape[:-3], key.shape[-3], key.shape[-2], query.shape[-1]))
    if key.shape[-3] < 1 or query.shape[-3] % key.shape[-3] != 0:
        checks.fail(OP, "key.shape[-3] (heads)", f"a divisor of the query heads ({query.shape[-3]})", key.shape[-3])
    if scale is not None and not math.isfinite(scale):
        checks.fail(OP, "scale", "a finite number", f"{scale:g}")
    if mask is not None:
        checks.dtype_is(OP, "mask", mask, torch.bool)
        checks.same_device(OP, "mask", mask, "query", query.device)
        checks.shape_is(OP, "mask", mask, (*query.shape[:-3], query.shape[-2], key.shape[-2]))


def _fake(query: Tensor, key: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    return query.new_empty((*key.shape[:-3], key.shape[-2]), dtype=acc_dtype(query.dtype))


register(
    "attention_saliency(Tensor query, Tensor key, Tensor? mask=None, *, float? scale=None) -> Tensor",
    check=check,
    reference=reference.attention_saliency,
    fake=_fake,
    cuda="vitcop_kernels.ops.attention_saliency.kernel",
)


def attention_saliency(query: Tensor, key: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """Attention received by each key, `sum_h sum_m softmax_j(q_m . k_j * scale)`; a *larger* value is more salient.

    With the [CLS] row as query this is Eq. 1; with the last prompt row it is FastV's and PyramidDrop's score, with
    rater rows SparseVLM's. `[B, H, N, N]` is never materialised, and the model's own attention keeps
    its backend.

    Args:
        query: `[B, Hq, M, d]` or `[Hq, M, d]`, float32, bfloat16 or float16; M is small.
        key: `[B, Hkv, N, d]` or `[Hkv, N, d]`, same dtype; Hkv divides Hq, consecutive query heads share a key head.
        scale: factor on the dot products; None is `1/sqrt(d)`.
        mask: `[B, M, N]` or `[M, N]` bool, True = may attend. A row that may attend to nothing contributes 0.

    Returns:
        `[B, N]` or `[N]`, float32, summing to the number of (head, row) pairs. A NaN score makes its whole row's
        contribution NaN, as softmax does; masked positions are never read into it.

    Raises:
        ValueError, TypeError: shapes that do not fit, dtypes other than the above.

    Not differentiable: a gradient asked through it raises RuntimeError.
    """
    return torch.ops.vitcop.attention_saliency(query, key, mask, scale=scale)
