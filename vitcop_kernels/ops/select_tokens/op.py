"""select_tokens: the k best tokens, in sequence order."""

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register

from . import reference

OP = "select_tokens"


def check(scores: Tensor, k: int, *, largest: bool = False) -> None:
    checks.floating(OP, "scores", scores)
    checks.dims(OP, "scores", scores, 1, 2, layout="[B, N] or [N]")
    checks.in_range(OP, "k", k, 0, scores.shape[-1])


def _fake(scores: Tensor, k: int, *, largest: bool = False) -> Tensor:
    return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int64)


register(
    "select_tokens(Tensor scores, SymInt k, *, bool largest=False) -> Tensor",
    check=check,
    reference=reference.select_tokens,
    fake=_fake,
    indices_only=True,
    cuda="vitcop_kernels.ops.select_tokens.kernel",
)


def select_tokens(scores: Tensor, k: int, *, largest: bool = False) -> Tensor:
    """Indices of the k best scores, in *ascending index order*, so that the kept tokens stay in sequence order.

    Args:
        scores: `[B, N]` or `[N]`, float32, bfloat16 or float16, any strides.
        k: how many to keep, 0 <= k <= N.
        largest: False keeps the smallest scores (key norms), True the largest (attention).

    Returns:
        `[B, k]` or `[k]`, int64. Ties: the lower index wins; -0.0 ties with 0.0. NaN is worse than every number, the
        infinities included, in either direction.

    Raises:
        ValueError, TypeError: k outside [0, N], a shape or dtype other than the above.

    The result is an index: nothing to differentiate.
    """
    return torch.ops.vitcop.select_tokens(scores, k, largest=largest)
