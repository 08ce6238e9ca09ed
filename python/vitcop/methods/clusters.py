"""Density-peak clusters of visual tokens, each segment (image, tile, frame) by itself."""

from collections.abc import Callable

import torch
from torch import Tensor

import vitcop_kernels as ops


def cluster_segments(
    features: Tensor, positions: Tensor, segment: Tensor, *, num_segments: int, longest: int, ordered: bool,
    centers: int, wanted: Callable[[Tensor], Tensor], d_c: float, tau: float, semantics: str = "paper",
) -> Tensor:  # fmt: skip
    """Labels `[G, V]` int64 below `num_segments * centers`; -1 where the released semantics leave a token out.

    How many tokens a segment has is known to the device alone, so shapes follow from upper bounds.

    Args:
        features: `[G, V, D]`. positions: `[G, V, P]` within the segment. segment: `[G, V]` int64 in [0, num_segments).
        longest: tokens of a segment, at most. ordered: `segment` ascends in every row.
        centers: clusters of a segment, at most, in [1, longest].
        wanted: lengths of segments `[G * num_segments]` -> the clusters that each should have, clamped to
            [1, centers].
    """
    order = None
    if not ordered:
        segment, order = segment.sort(dim=1, stable=True)
        features, positions = (x.gather(1, order[..., None].expand_as(x)) for x in (features, positions))
    row = torch.arange(segment.shape[0], device=segment.device)[:, None] * num_segments
    lengths = segment.new_zeros(segment.shape[0] * num_segments)
    lengths.scatter_add_(0, (segment + row).flatten(), torch.ones_like(segment).flatten())
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    result = ops.vic_cluster_varlen(
        features.flatten(0, 1), positions.flatten(0, 1), cu_seqlens, longest, d_c, tau, centers,
        semantics=semantics, center_counts=wanted(lengths).clamp(min=1).long(),
    )  # fmt: skip
    labels = result[0].view_as(segment)
    labels = torch.where(labels < 0, -1, labels + segment * centers)
    return labels if order is None else torch.empty_like(labels).scatter_(1, order, labels)
