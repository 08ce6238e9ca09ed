"""Measures the ops on real tokens; studies/results/real-features.md explains each number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels as ops

from .vit import VisionTransformer, normalised

D_C, TAU = 8.0, 0.6  # the paper's, tuned on keys of CLIP_WIDTH
CLIP_WIDTH = 1024
PRESETS = {"1/3": (0.5, 0.18), "2/9": (0.4, 0.15), "1/9": (0.3, 0.12)}  # retention -> the authors' (pi1, alpha)
QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
RELATIVE_D_C = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)  # of the median distance
TAUS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, math.inf)
TOP = (0.01, 0.05, 0.1, 0.3, 0.4, 0.5)
FLOAT32_LOG = 149 * math.log(2)  # exp(-x) is 0 in float32 from about here on
STATED = 2.0**-15  # relative error of d^2 that tests/certificates.py allows the kernels
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """One picture in front of the last but one block, which is where ViTCoP looks."""

    query: Tensor  # [H, 1, d], of [CLS]
    key: Tensor  # [H, 1 + N, d]
    norms: Tensor  # [1 + N], of the block's outputs
    side: int  # patches along an edge

    @property
    def features(self) -> Tensor:
        """`[N, H * d]`, what VIC clusters."""
        return self.key[:, 1:].transpose(0, 1).flatten(1)

    @property
    def positions(self) -> Tensor:
        """`[N, 2]`, (row, column) / side."""
        index = torch.arange(self.side**2)
        return torch.stack([index // self.side, index % self.side], dim=1).float() / self.side


def tokens_of(model: VisionTransformer, picture: Tensor) -> list[Tokens]:
    """`[1, 3, side, side]` in [0, 1] -> the tokens of every block; ViTCoP's is number -2."""
    blocks, _ = model(normalised(picture))
    side = picture.shape[-1] // model.patch
    return [Tokens(b.query[0, :, :1].contiguous(), b.key[0], b.hidden[0].norm(dim=-1), side) for b in blocks]


def saliency_of(tokens: Tokens, dtype: torch.dtype | None = None) -> Tensor:
    """`[N]`: attention that [CLS] pays to each patch, summed over the heads."""
    query, key = (t if dtype is None else t.to(dtype) for t in (tokens.query, tokens.key))
    return ops.attention_saliency(query, key)[1:]


def kept(saliency: Tensor, share: float) -> Tensor:
    """Stage I: indices of the most salient `floor(share * N)`, ascending."""
    return ops.select_tokens(saliency, int(share * len(saliency)), largest=True)


def measure(model: VisionTransformer, picture: Tensor) -> Numbers:
    layers = tokens_of(model, picture)
    tokens = layers[-2]
    stage1 = kept(saliency_of(tokens), PRESETS["1/9"][0])
    places, features = tokens.positions, tokens.features
    return {
        "all": geometry(features, places),
        "kept": geometry(features[stage1], places[stage1]),
        "presets": {name: preset(tokens, *ratios) for name, ratios in PRESETS.items()},
        "attention": attention(tokens),
        "key_norms": key_norms(layers),
    }


def geometry(features: Tensor, positions: Tensor) -> Numbers:
    """Distances, densities, ties and orphans of `[N, D]` at `[N, 2]`."""
    distance = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    pairs = distance[torch.ones_like(distance, dtype=torch.bool).triu(1)]
    nearest = distance.clone().fill_diagonal_(math.inf).amin(1)
    median = pairs.quantile(0.5).item()
    found = cluster(features, positions, D_C, TAU, 1)
    truth = cluster_truth(features, positions, D_C, TAU, 1)
    rho = truth[3]
    gaps = rho.log().sort().values.diff()
    return {
        "tokens": len(features),
        "distance_quantiles": pairs.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist(),
        "nearest_median": nearest.median().item(),
        "d_c_over_median": D_C / median,
        "share_of_pairs_within_d_c": (pairs < D_C).double().mean().item(),
        "vanishing_d_c": nearest.max().item() / math.sqrt(FLOAT32_LOG),
        "density": {
            "paper": density(features, D_C),
            "width": density(features, narrowed(features.shape[1])),
            **{f"{r:g}": density(features, r * median) for r in RELATIVE_D_C},
        },
        "duplicates": len(features) - len(torch.unique(features, dim=0)),
        "ties_truth": len(rho) - len(rho.unique()),
        "ties_float32": len(rho) - len(found[3].unique()),
        "closest_log_gap": gaps.min().item(),
        "ranks_moved_naive": ranks_moved(naive_density(features, D_C), rho),
        "orphans": {f"{tau:g}": orphans(features, positions, tau) for tau in TAUS},
    }


def narrowed(width: int) -> float:
    """The paper's d_c for narrower tokens than CLIP's, were distances to grow with the root of the width."""
    return D_C * math.sqrt(width / CLIP_WIDTH)


def density(features: Tensor, d_c: float) -> Numbers:
    """Range of the true density, and what a float32 sum of float32 terms makes of it."""
    log10 = cluster_truth(features, None, d_c, math.inf, 1)[3].log10()
    plain = naive_density(features, d_c)
    return {
        "log10_min": log10.min().item(),
        "log10_median": log10.median().item(),
        "log10_max": log10.max().item(),
        "vanished": (plain == 0).double().mean().item(),
    }


def naive_density(features: Tensor, d_c: float) -> Tensor:
    """`[N]`: Eq. 2 as one writes it down first: float32, distances by a matrix product."""
    distance = torch.cdist(features, features, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    return (-((distance / d_c) ** 2)).exp().sum(1)


def ranks_moved(values: Tensor, truth: Tensor) -> float:
    """Share of tokens whose place in the order of density is not the true one."""
    mine, true = ((-x).argsort(stable=True) for x in (values, truth))
    return (mine != true).double().mean().item()


def orphans(features: Tensor, positions: Tensor, tau: float) -> int:
    """Tokens without a denser one within tau, the densest among them."""
    return int(cluster(features, positions, D_C, tau, 1)[4].isinf().sum())


def cluster(features: Tensor, positions: Tensor, d_c: float, tau: float, centers: int) -> tuple[Tensor, ...]:
    """The op under test: labels, centers, parent, rho, delta."""
    return ops.vic_cluster(features, positions, d_c, tau, centers)


def cluster_truth(
    features: Tensor, positions: Tensor | None, d_c: float, tau: float, centers: int
) -> tuple[Tensor, ...]:
    """The same from the plain PyTorch reference in float64."""
    places = None if positions is None else positions.double()
    found: tuple[Tensor, ...] = torch.ops.vitcop_reference.vic_cluster(features.double(), places, d_c, tau, centers)
    return found


def preset(tokens: Tokens, share: float, alpha: float) -> Numbers:
    """VIC as ViTCoP runs it: on the tokens that Stage I keeps."""
    index = kept(saliency_of(tokens), share)
    features, positions = tokens.features[index], tokens.positions[index]
    centers = ops.num_centers_for(alpha, len(index))
    found = cluster(features, positions, D_C, TAU, centers)
    truth = cluster_truth(features, positions, D_C, TAU, centers)
    rounded = cluster(features.bfloat16(), positions, D_C, TAU, centers)
    unlimited = cluster(features, positions, D_C, math.inf, centers)
    labels, chosen, parent, rho, delta = found
    densest = ops.select_tokens(rho, centers, largest=True)
    sizes = torch.bincount(labels, minlength=centers)
    chains = chain_lengths(parent.tolist(), set(chosen.tolist()))
    return {
        "tokens": len(index),
        "centers": centers,
        "orphans": int(delta.isinf().sum()),
        "largest": sizes.max().item() / len(index),
        "median_size": sizes.double().median().item(),
        "singletons": int((sizes == 1).sum()),
        "chain_mean": float(np.mean(chains)),
        "chain_max": max(chains),
        "centers_among_densest": np.isin(chosen.numpy(), densest.numpy()).mean().item(),
        "without_tau": {
            "parents": (parent != unlimited[2]).double().mean().item(),
            "rand": adjusted_rand(labels, unlimited[0]),
        },
        "together": together(labels, index, tokens.side),
        "agreement": agreement(found, truth, features),
        "bfloat16": {
            "rand": adjusted_rand(labels, rounded[0]),
            "centers": np.isin(chosen.numpy(), rounded[1].numpy()).mean().item(),
            "stage1": np.isin(index.numpy(), kept(saliency_of(tokens, torch.bfloat16), share).numpy()).mean().item(),
        },
    }


def chain_lengths(parent: Sequence[int], centers: set[int]) -> list[int]:
    """Steps from each token to its centre."""
    lengths = []
    for token in range(len(parent)):
        steps = 0
        while token not in centers:
            token, steps = parent[token], steps + 1
        lengths.append(steps)
    return lengths


def together(labels: Tensor, index: Tensor, side: int) -> Numbers:
    """Share of pairs with one label, among patches that touch along an edge and among all."""
    rows, cols = index // side, index % side
    touch = (rows[:, None] - rows).abs() + (cols[:, None] - cols).abs() == 1
    same = labels[:, None] == labels
    others = ~torch.eye(len(labels), dtype=torch.bool)
    return {"touching": same[touch].double().mean().item(), "all": same[others].double().mean().item()}


def agreement(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], features: Tensor) -> Numbers:
    """The float32 op against the float64 truth: shares of equal indices, and the largest errors."""
    equal = {
        name: (a == b).double().mean().item()
        for name, a, b in zip(("labels", "centers", "parent"), found, truth, strict=False)
    }
    parent, rho, delta = truth[2:]
    where = delta.isfinite() & (parent == found[2])  # the same pair of tokens
    error = (found[4].double().square() - delta.square()).abs()[where]
    norms = features.double().norm(dim=1)
    product = (norms * norms[parent.clamp(min=0)])[where]
    squares = (norms.square() + norms[parent.clamp(min=0)].square())[where]
    return equal | {
        "rho_error": ((found[3] - rho) / rho).abs().max().item(),
        "d2_error": (error / delta[where].square()).max().item(),
        "d2_error_over_norms": (error / product).max().item(),
        "near": (delta[where].square() / squares).median().item(),
    }


def adjusted_rand(a: Tensor, b: Tensor) -> float:
    """1: the same partition, 0: no more alike than chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(a.numpy(), b.numpy()))


def attention(tokens: Tokens) -> Numbers:
    """How the attention of [CLS] spreads over the patches."""
    whole = ops.attention_saliency(tokens.query, tokens.key)
    saliency, truth = whole[1:], saliency_of(tokens, torch.float64)
    share = (truth / truth.sum()).sort(descending=True).values
    norms = tokens.norms[1:]
    return {
        "cls_itself": (whole[0] / whole.sum()).item(),
        "top": {f"{top:g}": share[: math.ceil(top * len(share))].sum().item() for top in TOP},
        "effective_share": math.exp(-(share * share.log()).sum().item()) / len(share),
        "ties": len(saliency) - len(saliency.unique()),
        "largest_token_norm_over_median": (norms.max() / norms.median()).item(),
        "error": ((saliency - truth) / truth).abs().max().item(),
        "stage1_as_truth": all(torch.equal(kept(saliency, p), kept(truth, p)) for p, _ in PRESETS.values()),
    }


def key_norms(layers: Sequence[Tokens]) -> Numbers:
    """The norms of the patches' keys in ViTCoP's block, and how they go with [CLS] attention, block by block."""
    from scipy.stats import spearmanr

    tokens = layers[-2]
    norms, truth = ops.key_norms(tokens.key)[1:], ops.key_norms(tokens.key.double())[1:]
    share = PRESETS["1/9"][0]
    salient = kept(saliency_of(tokens), share)
    smallest = ops.select_tokens(norms, len(salient))
    return {
        "min": norms.min().item(),
        "median": norms.median().item(),
        "max": norms.max().item(),
        "spread": (norms.std() / norms.mean()).item(),
        "spearman": [float(spearmanr(ops.key_norms(t.key)[1:], saliency_of(t)).statistic) for t in layers],
        "smallest_among_salient": np.isin(smallest.numpy(), salient.numpy()).mean().item(),
        "chance": share,
        "error": ((norms - truth) / truth).abs().max().item(),
    }
