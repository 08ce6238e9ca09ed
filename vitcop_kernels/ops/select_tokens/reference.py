"""Top-k that keeps sequence order."""

from torch import Tensor

from vitcop_kernels._order import argsort_best_first


def select_tokens(scores: Tensor, k: int, *, largest: bool = False) -> Tensor:
    return argsort_best_first(scores, largest)[..., :k].sort(dim=-1).values.contiguous()
