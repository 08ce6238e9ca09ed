"""What the ops are compared with: the same work in PyTorch, eager or compiled, as a user would write it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cluster_with_cdist(
    features: Tensor, positions: Tensor, d_c: float, tau: float, num_centers: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 2 on whole tensors, [N, D]: labels, centers, parent."""
    n = features.shape[0]
    distance = torch.cdist(features, features)
    rho = torch.exp(-((distance / d_c) ** 2)).sum(1) - 1
    denser = rho[None] > rho[:, None]
    near = torch.cdist(positions, positions) <= tau * (1 + 5e-7)
    delta, parent = distance.masked_fill(~(denser & near), torch.inf).min(1)
    anywhere = distance.masked_fill(~denser, torch.inf).argmin(1)
    parent = torch.where(delta.isinf(), anywhere, parent)
    centers = torch.where(delta.isinf(), torch.inf, rho * delta).topk(num_centers).indices.sort().values
    parent = parent.scatter(0, rho.argmax()[None], -1)
    pointer = parent.clone()
    pointer[centers] = centers
    for _ in range((n - 1).bit_length()):
        pointer = pointer[pointer]
    return torch.searchsorted(centers, pointer), centers, parent


def cluster_as_released(
    features: Tensor, positions: Tensor, d_c: float, tau: float, num_centers: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How the published code goes about it, in our words: an N x N x D difference, then loops over tokens in Python."""
    n = features.shape[0]
    difference = features[:, None] - features[None]  # [N, N, D]
    distance = difference.pow(2).sum(-1).sqrt()
    rho = torch.exp(-((distance / d_c) ** 2)).sum(1) - 1
    delta = torch.full((n,), torch.inf, device=features.device)
    parent = torch.full((n,), -1, device=features.device)
    for i in range(n):
        gap = (positions - positions[i]).pow(2).sum(-1).sqrt()
        denser = rho > rho[i]
        near = torch.where(denser & (gap <= tau * (1 + 5e-7)))[0]
        if len(near) > 0:
            delta[i], best = distance[i, near].min(0)
            parent[i] = near[best]
        elif denser.any():
            others = torch.where(denser)[0]
            parent[i] = others[distance[i, others].argmin()]
    centers = torch.where(delta.isinf(), torch.inf, rho * delta).topk(num_centers).indices.sort().values
    place = {c: k for k, c in enumerate(centers.tolist())}
    labels = torch.full((n,), -1, device=features.device)
    for i in range(n):
        at = i
        while at not in place:
            at = int(parent[at])
        labels[i] = place[at]
    return labels, centers, parent


def key_norms(keys: Tensor) -> Tensor:
    return keys.float().square().sum((-3, -1)).sqrt()


def key_norms_flat(keys: Tensor) -> Tensor:
    return torch.linalg.vector_norm(keys, dim=(-3, -1), dtype=torch.float32)


def key_proj(hidden: Tensor, weight: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    flat = F.linear(hidden, weight)
    keys = flat.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return keys, torch.linalg.vector_norm(flat, dim=-1, dtype=torch.float32)


def key_proj_norms(hidden: Tensor, weight: Tensor, rms_weight: Tensor, eps: float) -> Tensor:
    keys = F.linear(F.rms_norm(hidden, (hidden.shape[-1],), rms_weight, eps), weight)
    return torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)


def attention_saliency(query: Tensor, key: Tensor) -> Tensor:
    """Scores of a few rows only, as the op takes them: softmax in float32, summed over heads and rows."""
    share = query.shape[1] // key.shape[1]
    grouped = query.unflatten(1, (key.shape[1], share)).flatten(2, 3)  # [B, Hkv, share*M, d]
    scores = grouped @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1, dtype=torch.float32).sum((1, 2))


def select_tokens(scores: Tensor, k: int) -> Tensor:
    return scores.topk(k, largest=False, sorted=False).indices.sort(-1).values


def segment_mean_by_index_add(x: Tensor, segment: Tensor, lengths: Tensor) -> Tensor:
    """[N, C], the segment of each token and the segments' lengths."""
    sums = torch.zeros(len(lengths), x.shape[1], dtype=torch.float32, device=x.device).index_add_(0, segment, x.float())
    return (sums / lengths[:, None]).to(x.dtype)


def segment_mean_by_reduce(x: Tensor, perm: Tensor, offsets: Tensor) -> Tensor:
    return torch.segment_reduce(x[perm], "mean", offsets=offsets, unsafe=True)


class DecoderLayer(nn.Module):
    """One Llama layer of 4096 channels: what a prefill runs 32 times."""

    def __init__(self, width: int = 4096, inner: int = 11008, heads: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        position = torch.arange(4096)[:, None] * 10_000 ** (-torch.arange(0, 1, 2 * heads / width))
        self.register_buffer("cos", torch.cat([position.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([position.sin()] * 2, -1))

    def rope(self, x: Tensor) -> Tensor:
        n, half = x.shape[-2], x.shape[-1] // 2
        return x * self.cos[:n] + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sin[:n]

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in self.qkv)
        a = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))
