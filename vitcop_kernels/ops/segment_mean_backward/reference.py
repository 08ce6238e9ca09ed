"""The gradient of Eq. 6, in float64: the transpose of a linear map, whose transpose is `segment_mean` again."""

import torch
from torch import Tensor


def segment_mean_backward(
    grad: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> Tensor:
    if grad.dim() == 2:
        lift = [None if t is None else t[None] for t in (anchors, merged)]
        return segment_mean_backward(grad[None], perm[None], offsets[None], lift[0], lift[1], merge=merge)[0]

    batch, num_segments, width = grad.shape
    n = perm.shape[1]
    out = grad.new_zeros((batch, n, width), dtype=torch.float64)
    if num_segments == 0:
        return out.to(grad.dtype)
    wide = grad.to(torch.float64)
    bounds = offsets.clamp(0, n).cummax(-1).values
    slot = torch.arange(n, device=grad.device).expand(batch, n).contiguous()
    segment = torch.searchsorted(bounds[:, 1:].contiguous(), slot, right=True)  # [B, N] of perm's entries
    used = (segment < num_segments) & (slot >= bounds[:, :1])
    share = wide / bounds.diff().clamp(min=1)[..., None]
    share = share.gather(1, segment.clamp(max=num_segments - 1)[..., None].expand(-1, -1, width))
    token = perm.clamp(0, n - 1)[..., None].expand(-1, -1, width)
    out = out.scatter_add(1, token, torch.where(used[..., None], share, 0.0))
    if merge == "anchor_plus_mean" and anchors is not None and merged is not None:
        added = torch.where(merged[..., None], wide, 0.0)
        out = out.scatter_add(1, anchors.clamp(0, n - 1)[..., None].expand(-1, -1, width), added)
    return out.to(grad.dtype)
