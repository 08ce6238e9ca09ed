"""The mean of each segment (Eq. 6), and by anchor what else belongs to a slot."""

import torch
from torch import Tensor

from vitcop_kernels.ops.segment_mean import reference as means


def compact_sequence(
    x: Tensor,
    companions: list[Tensor],
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> tuple[Tensor, list[Tensor]]:
    y = means.segment_mean(x, perm, offsets, anchors, merged, merge=merge)
    index = anchors.clamp(0, x.shape[-2] - 1)
    if x.dim() == 2:
        return y, [t.index_select(0, index) for t in companions]
    row = torch.arange(x.shape[0], device=x.device)[:, None]
    # Contiguous, as the kernels have it: indexing alone follows the layout of the index.
    return y, [t.expand(x.shape[0], *t.shape[1:])[row, index].contiguous() for t in companions]
