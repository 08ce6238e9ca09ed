"""vic_cluster_varlen: vic_cluster for samples of different lengths, packed one after another."""

import torch
from torch import Tensor

from vitcop_kernels import _checks as checks
from vitcop_kernels._library import register
from vitcop_kernels._order import acc_dtype
from vitcop_kernels.ops.vic_cluster.op import OPTIONS, RESULT, check_options

from . import reference

OP = "vic_cluster_varlen"


def check(
    features: Tensor,
    positions: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
    d_c: float,
    tau: float,
    num_centers: int,
    center_counts: Tensor | None = None,
    **options: object,
) -> None:
    checks.floating(OP, "features", features)
    checks.dims(OP, "features", features, 2, layout="[T, D]")
    checks.at_least(OP, "features.shape[0] (tokens)", features.shape[0], 1)
    if positions is not None:
        checks.floating(OP, "positions", positions)
        checks.same_device(OP, "positions", positions, "features", features.device)
        checks.dims(OP, "positions", positions, 2, layout="[T, P]")
        checks.shape_is(OP, "positions", positions, (features.shape[0], positions.shape[1]))
    checks.dtype_is(OP, "cu_seqlens", cu_seqlens, torch.int32, torch.int64)
    checks.same_device(OP, "cu_seqlens", cu_seqlens, "features", features.device)
    checks.dims(OP, "cu_seqlens", cu_seqlens, 1, layout="[B+1]")
    checks.at_least(OP, "cu_seqlens.shape[0] (B+1)", cu_seqlens.shape[0], 2)
    checks.at_least(OP, "max_seqlen", max_seqlen, 1)
    checks.in_range(OP, "num_centers", num_centers, 1, max_seqlen)
    if center_counts is not None:
        checks.dtype_is(OP, "center_counts", center_counts, *checks.INTS)
        checks.same_device(OP, "center_counts", center_counts, "features", features.device)
        checks.shape_is(OP, "center_counts", center_counts, (cu_seqlens.shape[0] - 1,))
    check_options(OP, d_c, tau, **options)  # type: ignore[arg-type]


def _fake(
    features: Tensor,
    positions: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
    d_c: float,
    tau: float,
    num_centers: int,
    center_counts: Tensor | None = None,
    **options: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    labels = features.new_empty(features.shape[:1], dtype=torch.int64)
    centers = features.new_empty((cu_seqlens.shape[0] - 1, num_centers), dtype=torch.int64)
    rho = features.new_empty(features.shape[:1], dtype=acc_dtype(features.dtype))
    return labels, centers, torch.empty_like(labels), rho, torch.empty_like(rho)


register(
    "vic_cluster_varlen(Tensor features, Tensor? positions, Tensor cu_seqlens, SymInt max_seqlen, "
    f"float d_c, float tau, SymInt num_centers, Tensor? center_counts=None, *, {OPTIONS}) -> {RESULT}",
    check=check,
    reference=reference.vic_cluster_varlen,
    fake=_fake,
    cuda="vitcop_kernels.ops.vic_cluster_varlen.kernel",
)


def vic_cluster_varlen(
    features: Tensor,
    positions: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
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
    center_counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`vic_cluster` on ragged samples packed one after another, as FlashAttention's varlen calls pack them.

    Args:
        features: `[T, D]`; positions: `[T, P]` or None; dtypes and the other options as for `vic_cluster`.
        cu_seqlens: `[B+1]` int32 or int64, sample b is rows `cu_seqlens[b]:cu_seqlens[b+1]`: ascending from 0 to T.
            On the CPU anything else raises ValueError; on a GPU, where looking would cost a host sync, it is clamped.
        max_seqlen: the longest sample, an upper bound will do.
        num_centers: width of `centers`, in [1, max_seqlen]; a sample shorter than that has as many clusters as tokens.
        center_counts: `[B]` int, clusters wanted in each sample, clamped to [1, num_centers].

    Returns:
        labels, parent `[T]` int64 and centers `[B, num_centers]` int64, all counted within their sample (-1 beyond a
        sample's count); rho, delta `[T]` float32. Each sample has the bits that `vic_cluster` gives it alone.

    Raises:
        ValueError, TypeError: as `vic_cluster`, and for malformed `cu_seqlens` on the CPU.

    The result is a partition: a gradient asked through rho or delta raises RuntimeError.
    """
    return torch.ops.vitcop.vic_cluster_varlen(
        features,
        positions,
        cu_seqlens,
        max_seqlen,
        d_c,
        tau,
        num_centers,
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
