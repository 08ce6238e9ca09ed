"""Eq. 6: the mean of each segment, in float64, and its gradient."""

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
    return mean.to(x.dtype)


def backward(
    grad: Tensor, n: int, perm: Tensor, offsets: Tensor, anchors: Tensor | None, merged: Tensor | None
) -> Tensor:
    """Gradient with respect to x: every member gets `grad/len`, an anchor that was added `grad` besides."""
    if grad.dim() == 2:
        lift = [None if t is None else t[None] for t in (anchors, merged)]
        return backward(grad[None], n, perm[None], offsets[None], lift[0], lift[1])[0]

    if grad.shape[1] == 0:
        return grad.new_zeros((grad.shape[0], n, grad.shape[2]))
    wide = grad.to(torch.float64 if grad.dtype == torch.float64 else torch.float32)
    slot = torch.arange(n, device=grad.device).expand_as(perm).contiguous()
    segment = torch.searchsorted(offsets[:, 1:].contiguous(), slot, right=True)  # [B, N]
    used = (segment < grad.shape[1]) & (slot >= offsets[:, :1])
    share = wide / offsets.diff().clamp(min=1)[..., None]
    share = share.gather(1, segment.clamp(max=grad.shape[1] - 1)[..., None].expand(-1, -1, grad.shape[-1]))
    out = wide.new_zeros((grad.shape[0], n, grad.shape[-1]))
    out = out.scatter_add(1, perm[..., None].expand_as(share), torch.where(used[..., None], share, 0.0))
    if merged is not None and anchors is not None:
        added = torch.where(merged[..., None], wide, 0.0)
        out = out.scatter_add(1, anchors.clamp(min=0)[..., None].expand_as(added), added)
    return out.to(grad.dtype)
