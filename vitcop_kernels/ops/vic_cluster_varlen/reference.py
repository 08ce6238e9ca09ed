"""Ragged samples: padded to one batch, clustered, packed again."""

from typing import Any

import torch
from torch import Tensor

from vitcop_kernels.ops.vic_cluster import reference as padded


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
) -> padded.Clusters:
    total = features.shape[0]
    max_seqlen = min(max_seqlen, max(total, num_centers))  # an upper bound may be loose
    start = cu_seqlens[:-1].long().clamp(0, total)  # [B]
    length = (cu_seqlens[1:].long().clamp(0, total) - start).clamp(0, max_seqlen)
    local = torch.arange(max_seqlen, device=features.device)
    valid = local < length[:, None]  # [B, max_seqlen]
    source = (start[:, None] + local).clamp(max=total - 1)
    places = None if positions is None else positions[source]
    batch = padded.vic_cluster(
        features[source],
        places,
        d_c,
        tau,
        num_centers,
        valid,
        center_counts,
        **options,
    )

    token = torch.arange(total, device=features.device)
    sample = (torch.searchsorted(cu_seqlens.long().contiguous(), token, right=True) - 1).clamp(0, start.shape[0] - 1)
    place = token - start[sample]
    held = (place >= 0) & (place < length[sample])  # False only for malformed cu_seqlens
    place = place.clamp(0, max_seqlen - 1)

    def pack(values: Tensor, otherwise: float) -> Tensor:
        return values[sample, place].masked_fill(~held, otherwise)

    return padded.Clusters(
        pack(batch.labels, -1),
        batch.centers,
        pack(batch.parent, -1),
        pack(batch.rho, 0.0),
        pack(batch.delta, padded.INF),
    )
