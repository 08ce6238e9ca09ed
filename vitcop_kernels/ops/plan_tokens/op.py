"""plan_tokens: which tokens stay, which are merged, as a CSR of output tokens (Eq. 5, Algorithm 3)."""

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register

from . import reference

OP = "plan_tokens"


def check(
    labels: Tensor, scores: Tensor, num_clusters: int, budget: int, *, quota: str = "exact", fill: bool = True
) -> None:
    checks.dtype_is(OP, "labels", labels, *checks.INTS)
    checks.dims(OP, "labels", labels, 1, 2, layout="[B, N] or [N]")
    checks.floating(OP, "scores", scores)
    checks.shape_is(OP, "scores", scores, tuple(labels.shape))
    checks.same_device(OP, "scores", scores, "labels", labels.device)
    checks.at_least(OP, "num_clusters", num_clusters, 1)
    checks.at_least(OP, "budget", budget, 1)
    checks.one_of(OP, "quota", quota, "exact", "floor", "released")


def _fake(
    labels: Tensor, scores: Tensor, num_clusters: int, budget: int, *, quota: str = "exact", fill: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, segments = labels.shape[:-1], torch.sym_min(budget, labels.shape[-1])

    def index(*shape: int) -> Tensor:
        return labels.new_empty((*batch, *shape), dtype=torch.int64)

    merged = labels.new_empty((*batch, segments), dtype=torch.bool)
    return index(labels.shape[-1]), index(segments + 1), index(segments), merged


register(
    "plan_tokens(Tensor labels, Tensor scores, SymInt num_clusters, SymInt budget, *, "
    'str quota="exact", bool fill=True) -> (Tensor perm, Tensor offsets, Tensor anchors, Tensor merged)',
    check=check,
    reference=reference.plan_tokens,
    fake=_fake,
    cuda="vitcop_kernels.ops.plan_tokens.kernel",
    indices_only=True,
)


def plan_tokens(
    labels: Tensor, scores: Tensor, num_clusters: int, budget: int, *, quota: str = "exact", fill: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn clusters and scores into a plan of `S = min(budget, N)` output tokens (Algorithm 3).

    Every cluster keeps its `q_c` best tokens (*lower score = kept first*) as they are and merges the rest into one
    token. Output token `s` is made of the tokens `perm[offsets[s]:offsets[s+1]]` (ascending): an elite is a segment
    of one, a cluster's remainder one segment. Output tokens are ordered by anchor.

    Quotas, with `N_c` non-empty clusters of `n` tokens in all and `B_e = budget - N_c`:

    - "exact": `floor(|C_c| * B_e / n)` (Eq. 5) in integers; the missing elites are dealt one each in rounds by
      descending remainder (ties: lower label), skipping clusters down to their last token. Always `budget` segments.
    - "floor": Eq. 5 literally, which loses up to `N_c - 1` tokens. With `fill` the free slots go to the lowest-scored
      tokens that are neither elite nor the last of their cluster; without it they stay empty at the end, see below.
    - "released": as the authors' code: weights `(|C_c| - 1) / (n - N_c)` in float32, round half to even, one repair
      pass.

    With more clusters than budget, the `budget - 1` clusters of smallest summed score become one token each and
    everything else becomes one token. With `budget >= n` every token is kept.

    Args:
        labels: `[B, N]` or `[N]`, int64 or int32. A label outside `[0, num_clusters)` belongs to no cluster: such
            tokens are dropped, except that under "released" they form one more cluster.
        scores: same shape, float32, bfloat16 or float16; NaN is the worst, ties go to the lower index.
        num_clusters: upper bound of the labels; budget: tokens to come out; both at least 1.
        quota: "exact", "floor" or "released". fill: see "floor".

    Returns:
        perm: `[B, N]` int64, dropped tokens last.
        offsets: `[B, S+1]` int64. Where fewer than S segments exist the last ones are empty, so their number is
            `(offsets.diff() > 0).sum(-1)`.
        anchors: `[B, S]` int64, the token whose position the output takes: the elite itself, or member `n//2` of the
            index-sorted remainder; -1 for an empty segment.
        merged: `[B, S]` bool, True for remainders (of one member too), False for elites.

    Raises:
        ValueError, TypeError: budgets below 1, unknown quotas, shapes or dtypes other than the above.

    The result is indices: nothing to differentiate.
    """
    return torch.ops.vitcop.plan_tokens(labels, scores, num_clusters, budget, quota=quota, fill=fill)
