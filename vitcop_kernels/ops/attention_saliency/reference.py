"""Eq. 1 and its relatives: attention received, summed over heads and query rows."""

import torch
from torch import Tensor

from vitcop_kernels._order import acc_dtype


def attention_saliency(query: Tensor, key: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    q, k = query.to(torch.float64), key.to(torch.float64)
    k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)  # GQA: consecutive query heads share a key head
    scores = q @ k.transpose(-1, -2) * (max(query.shape[-1], 1) ** -0.5 if scale is None else scale)  # [..., Hq, M, N]
    if mask is not None:
        allowed = mask.unsqueeze(-3)
        scores = scores.masked_fill(~allowed, float("-inf"))
        # A row that may attend to nothing contributes nothing (softmax of all -inf would be NaN).
        attention = scores.softmax(dim=-1).masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0)
    else:
        attention = scores.softmax(dim=-1)
    return attention.sum(dim=(-3, -2)).to(acc_dtype(query.dtype))
