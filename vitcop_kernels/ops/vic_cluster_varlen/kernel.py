"""Launcher of vic_cluster on packed samples: the same kernels, a sample's rows found through cu_seqlens."""

from typing import Any

import torch
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels.ops.vic_cluster.aot import specs
from vitcop_kernels.ops.vic_cluster.kernel import MAX_TOKENS, Problem, cluster


def vic_cluster_varlen(
    features: Tensor,
    positions: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
    d_c: float,
    tau: float,
    num_centers: int,
    center_counts: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    if features.dtype == torch.float64 or max_seqlen > MAX_TOKENS:
        return torch.ops.vitcop_reference.vic_cluster_varlen(
            features, positions, cu_seqlens, max_seqlen, d_c, tau, num_centers, center_counts, **options
        )
    batch = cu_seqlens.shape[0] - 1
    return cluster(
        Problem(
            features, positions, cu_seqlens.contiguous(), None, center_counts, batch, max_seqlen, d_c, tau, num_centers
        ),
        **options,
    )


def aot_specs() -> list[AotSpec]:
    return specs("vic_cluster_varlen")
