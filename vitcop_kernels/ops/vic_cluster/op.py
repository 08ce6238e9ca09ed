"""vic_cluster: density-peak clustering of visual tokens (VIC: Eq. 2-3, Algorithm 2)."""

import math

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels._order import acc_dtype

from . import reference

OP = "vic_cluster"
OPTIONS = (
    'str semantics="paper", str metric="l2", float dist_scale=1.0, str density="gaussian", int knn=5, '
    'bool? include_self=None, str assign="parent", str root_delta="inf"'
)
RESULT = "(Tensor labels, Tensor centers, Tensor parent, Tensor rho, Tensor delta)"


def check_options(
    op: str,
    d_c: float,
    tau: float,
    *,
    semantics: str = "paper",
    metric: str = "l2",
    dist_scale: float = 1.0,
    density: str = "gaussian",
    knn: int = 5,
    include_self: bool | None = None,
    assign: str = "parent",
    root_delta: str = "inf",
) -> None:
    checks.positive_finite(op, "d_c", d_c)
    if math.isnan(tau) or tau < 0:
        checks.fail(op, "tau", "a number, at least 0 (inf: no spatial limit)", f"{tau:g}")
    checks.one_of(op, "semantics", semantics, "paper", "released")
    checks.one_of(op, "metric", metric, "l2", "cosine")
    if not 1e-100 <= dist_scale <= 1e100:  # squares of distances between float32 features stay in float64's range
        checks.fail(op, "dist_scale", "a number from 1e-100 to 1e100", f"{dist_scale:g}")
    checks.one_of(op, "density", density, "gaussian", "knn")
    checks.at_least(op, "knn", knn, 1)
    checks.one_of(op, "assign", assign, "parent", "nearest")
    checks.one_of(op, "root_delta", root_delta, "inf", "max")


def check(
    features: Tensor,
    positions: Tensor | None,
    d_c: float,
    tau: float,
    num_centers: int,
    valid: Tensor | None = None,
    center_counts: Tensor | None = None,
    **options: object,
) -> None:
    checks.floating(OP, "features", features)
    checks.dims(OP, "features", features, 2, 3, layout="[B, N, D] or [N, D]")
    checks.at_least(OP, "features.shape[-2] (tokens)", features.shape[-2], 1)
    if positions is not None:
        checks.floating(OP, "positions", positions)
        checks.same_device(OP, "positions", positions, "features", features.device)
        checks.dims(OP, "positions", positions, 2, features.dim(), layout="[N, P], or [B, N, P] with batched features")
        leading = features.shape[:-1] if positions.dim() == features.dim() else features.shape[-2:-1]
        checks.shape_is(OP, "positions", positions, (*leading, positions.shape[-1]))
    checks.in_range(OP, "num_centers", num_centers, 1, features.shape[-2])
    if valid is not None:
        checks.dtype_is(OP, "valid", valid, torch.bool)
        checks.same_device(OP, "valid", valid, "features", features.device)
        checks.shape_is(OP, "valid", valid, tuple(features.shape[:-1]))
    if center_counts is not None:
        checks.dtype_is(OP, "center_counts", center_counts, *checks.INTS)
        checks.same_device(OP, "center_counts", center_counts, "features", features.device)
        checks.shape_is(OP, "center_counts", center_counts, tuple(features.shape[:-2]))
    check_options(OP, d_c, tau, **options)  # type: ignore[arg-type]


def _fake(
    features: Tensor,
    positions: Tensor | None,
    d_c: float,
    tau: float,
    num_centers: int,
    valid: Tensor | None = None,
    center_counts: Tensor | None = None,
    **options: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    labels = features.new_empty(features.shape[:-1], dtype=torch.int64)
    centers = features.new_empty((*features.shape[:-2], num_centers), dtype=torch.int64)
    rho = features.new_empty(features.shape[:-1], dtype=acc_dtype(features.dtype))
    return labels, centers, torch.empty_like(labels), rho, torch.empty_like(rho)


register(
    "vic_cluster(Tensor features, Tensor? positions, float d_c, float tau, SymInt num_centers, Tensor? valid=None, "
    f"Tensor? center_counts=None, *, {OPTIONS}) -> {RESULT}",
    check=check,
    reference=reference.vic_cluster,
    fake=_fake,
    cuda="vitcop_kernels.ops.vic_cluster.kernel",
)


def vic_cluster(
    features: Tensor,
    positions: Tensor | None,
    d_c: float,
    tau: float,
    num_centers: int,
    *,
    semantics: str = "paper",
    metric: str = "l2",
    dist_scale: float = 1.0,
    density: str = "gaussian",
    knn: int = 5,
    include_self: bool | None = None,
    assign: str = "parent",
    root_delta: str = "inf",
    valid: Tensor | None = None,
    center_counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cluster tokens by density peaks.

    1. `d_ij = dist_scale * |f_i - f_j|`, or `dist_scale * (1 - cos(f_i, f_j))` with `metric="cosine"`.
    2. Density (Eq. 2) `rho_i = sum_{j != i} exp(-(d_ij / d_c)^2)`, ranked in the log domain where it cannot underflow;
       or with `density="knn"` `rho_i = exp(-mean of the knn smallest d_ij^2)`, without `d_c`. `include_self` counts
       `j = i` too.
    3. `delta_i, parent_i` (Eq. 3): distance and index of the nearest denser token within `tau` of position `p_i`
       (boundary included). A token with none so near has `delta = inf` and the nearest denser token anywhere as its
       parent; the densest has parent -1. Equal densities: the lower index is the denser.
    4. The `num_centers` tokens of largest (`gamma = rho * delta`, then rho, then lower index) are the centres.
    5. Every other token takes the label at the end of its parent chain, or with `assign="nearest"` of its nearest
       centre.

    `semantics="released"` is the authors' code with its bugs: `j = i` counts, densities are float32 and ties make
    tokens each other's parents, `d = sqrt(d^2 + 1e-8)`, a token without a parent has parent 0, and cycles without a
    centre get label -1.

    Args:
        features: `[B, N, D]` or `[N, D]`, float32, bfloat16 or float16, any strides.
        positions: `[B, N, P]` or `[N, P]` (one layout for all samples), or None: no spatial limit. In units of `tau`.
        d_c: cutoff distance of the density, in units of d; the paper uses 8 on CLIP's key projections.
        tau: spatial limit, the paper uses 0.6 of the image's side; inf switches it off.
        num_centers: clusters per sample, in [1, N]; see `num_centers_for`.
        metric, dist_scale, density, knn, include_self, assign, root_delta: other density-peak clusterings, as above.
            `dist_scale` is at least 1e-100 and at most 1e100.
            `root_delta="max"` replaces an infinite delta by the largest distance. `include_self=None` follows
            `semantics`.
        valid: `[B, N]` bool; False is padding: label -1, parent -1, rho 0, delta inf, and it exists for no other token.
        center_counts: `[B]` int, clusters wanted in each sample, clamped to [1, num_centers].

    Returns:
        labels `[B, N]` int64 in `[0, num_centers)`, centers `[B, num_centers]` int64 ascending with
        `labels[centers[k]] = k` (-1 beyond a sample's count), parent `[B, N]` int64, rho and delta `[B, N]` float32.
        Same input, same bits, alone or in a batch. Exact duplicates tie exactly. A token with NaN or inf among its
        features is infinitely far from all others: it has rho 0, delta inf, sorts last as a centre and takes the
        densest token as its parent.

    Raises:
        ValueError, TypeError: shapes that do not fit, options or dtypes other than the above.

    The result is a partition: a gradient asked through rho or delta raises RuntimeError.
    """
    return torch.ops.vitcop.vic_cluster(
        features,
        positions,
        d_c,
        tau,
        num_centers,
        valid,
        center_counts,
        semantics=semantics,
        metric=metric,
        dist_scale=dist_scale,
        density=density,
        knn=knn,
        include_self=include_self,
        assign=assign,
        root_delta=root_delta,
    )


def num_centers_for(center_ratio: float, num_tokens: int, *, semantics: str = "paper") -> int:
    """Clusters for a share of the tokens: `ceil(alpha * N)` of Algorithm 2, or the authors' `max(1, int(alpha*N))`."""
    checks.one_of("num_centers_for", "semantics", semantics, "paper", "released")
    if not 0 < center_ratio <= 1:
        checks.fail("num_centers_for", "center_ratio", "a share in (0, 1]", f"{center_ratio:g}")
    checks.at_least("num_centers_for", "num_tokens", num_tokens, 1)
    if semantics == "released":
        return max(1, int(center_ratio * num_tokens))
    return min(num_tokens, math.ceil(center_ratio * num_tokens))
