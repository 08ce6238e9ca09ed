"""The ops in a method of one's own: 576 visual tokens become 64, every cluster keeps its best and the mean of its rest.

python examples/op.py
"""

import torch
from torch import Tensor

import vitcop_kernels as ops


def prune(hidden: Tensor, query: Tensor, key: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Visual tokens `hidden [B, N, C]` to `[B, budget, C]`, with the place `[B, budget]` that each output takes.

    query: `[B, H, M, d]` of the prompt's last M tokens. key: `[B, H, N, d]` of the visual tokens.
    """
    num_tokens = hidden.shape[1]
    saliency = ops.attention_saliency(query, key)  # [B, N], larger is more salient
    features = key.transpose(1, 2).flatten(2)  # [B, N, H*d]
    num_clusters = ops.num_centers_for(0.05, num_tokens)
    labels, *_ = ops.vic_cluster(features, None, 8.0, float("inf"), num_clusters)  # no positions: no spatial limit
    perm, offsets, anchors, merged = ops.plan_tokens(labels, -saliency, num_clusters, budget)  # lowest score first
    return ops.segment_mean(hidden, perm, offsets, anchors=anchors, merged=merged), anchors


def main() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 576, 4096, requires_grad=True)
    query, key = torch.randn(2, 32, 4, 128), torch.randn(2, 32, 576, 128)
    pruned, places = prune(hidden, query, key, budget=64)
    pruned.sum().backward()  # gradients go through the means
    print(f"{tuple(hidden.shape)} -> {tuple(pruned.shape)}, the first at {places[0, :8].tolist()}")


if __name__ == "__main__":
    main()
