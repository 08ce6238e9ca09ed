"""The density-peak clusterings of other methods by `vic_cluster`, checked against each method in plain PyTorch.

python examples/density_peaks.py

The plain versions follow the published code, without the random noise by which three of them break ties: where
densities tie, `vic_cluster` takes the lower index (PACT ranks, which is the same). Each returns `[N]`, for every token
the token that is the centre of its cluster.
"""

import torch
from torch import Tensor

import vitcop_kernels as ops

INF = float("inf")


def pact(x: Tensor, clusters: int) -> Tensor:
    """PACT's density: Gaussian on 1 - cosine, every token its own neighbour; others go where their parent goes."""
    unit = x / x.norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    density = (-((distance / 2) ** 2)).exp().sum(-1)
    gap, parent = distance.masked_fill(~denser(density), INF).min(-1)
    centers = (density * gap).topk(clusters).indices
    parent[centers] = centers
    for _ in range(len(x)):  # to the end of the chain
        parent = parent[parent]
    return parent


def knn(x: Tensor, clusters: int, k: int) -> Tensor:
    """DPC-KNN as Chat-UniVi, PruneVid, HoliTom and SparseVLM have it; they differ in k."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[-1] ** 0.5
    density = (-(distance.topk(k, largest=False).values ** 2).mean(-1)).exp()
    gap = distance.masked_fill(~denser(density), INF).amin(-1).clamp(max=distance.max())
    centers = (density * gap).topk(clusters).indices
    nearest = centers[distance[:, centers].argmin(-1)]
    nearest[centers] = centers
    return nearest


def denser(density: Tensor) -> Tensor:
    """[i, j]: j is denser than i; of equals, the first is."""
    index = torch.arange(len(density))
    return (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (index[None] < index[:, None]))


def by_kernel(x: Tensor, clusters: int, *, d_c: float = 1.0, **options: object) -> Tensor:
    """The same by the one op: no positions, so no spatial limit."""
    labels, centers, *_ = ops.vic_cluster(x, None, d_c, INF, clusters, include_self=True, **options)  # type: ignore[arg-type]
    return centers[labels]


def methods(width: int, clusters: int) -> dict[str, tuple]:
    """Per method: its plain version, and the options of `vic_cluster` that stand for it."""
    near = {"density": "knn", "dist_scale": width**-0.5, "assign": "nearest", "root_delta": "max"}
    return {
        "PACT": (pact, {"metric": "cosine", "d_c": 2.0}),
        "Chat-UniVi, images (k = 5)": (lambda x, c: knn(x, c, 5), near | {"knn": 5}),
        "PruneVid (k = 7)": (lambda x, c: knn(x, c, 7), near | {"knn": 7}),
        "HoliTom (k = min(7, c))": (lambda x, c: knn(x, c, min(7, c)), near | {"knn": min(7, clusters)}),
        "SparseVLM (k = c)": (lambda x, c: knn(x, c, c), near | {"knn": clusters}),
    }


def main() -> None:
    torch.manual_seed(0)
    tokens, width, clusters = 144, 64, 12
    x = torch.randn(clusters, width).repeat_interleave(tokens // clusters, 0) + 0.7 * torch.randn(tokens, width)
    for name, (plain, options) in methods(width, clusters).items():
        expected, got = plain(x, clusters), by_kernel(x, clusters, **options)
        agree = int((expected == got).sum())
        print(f"{name:28} {len(got.unique())} clusters, {agree} of {tokens} tokens where the published code puts them")
        assert agree == tokens


if __name__ == "__main__":
    main()
