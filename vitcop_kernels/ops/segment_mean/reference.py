"""Eq. 6: the mean of each segment, in float64."""

import torch
from torch import Tensor


def segment_mean(
    x: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> Tensor:
    if x.dim() == 2:
        lift = [None if t is None else t[None] for t in (anchors, merged)]
        return segment_mean(x[None], perm[None], offsets[None], lift[0], lift[1], merge=merge)[0]

    batch, n, width = x.shape
    wide = x.to(torch.float64)
    rows = wide.gather(1, perm.clamp(0, n - 1)[..., None].expand(-1, -1, width))  # [B, N, C]
    # Tokens before the first offset and after the last one are segments too, cut off below.
    bounds = torch.nn.functional.pad(offsets.clamp(0, n).cummax(-1).values, (1, 0), value=0)
    bounds = torch.nn.functional.pad(bounds, (0, 1), value=n)
    lengths = bounds.diff()  # [B, 1 + S + 1]
    sums = torch.segment_reduce(rows.flatten(0, 1), "sum", lengths=lengths.flatten(), unsafe=True, initial=0.0)
    mean = (sums.view(batch, lengths.shape[1], width) / lengths.clamp(min=1)[..., None])[:, 1:-1]
    # A segment of one is a copy: 0 + -0.0 would lose the sign.
    first = rows.gather(1, bounds[:, 1:-2].clamp(max=n - 1)[..., None].expand(-1, -1, width))
    mean = torch.where((lengths[:, 1:-1] == 1)[..., None], first, mean)
    if merge == "anchor_plus_mean" and anchors is not None and merged is not None:
        anchor = wide.gather(1, anchors.clamp(0, n - 1)[..., None].expand(-1, -1, width))
        mean = torch.where(merged[..., None], anchor + mean, mean)
    return mean.to(x.dtype).contiguous()  # torch.where follows the layout of what it reads
