"""What else does the work of an op: PyTorch as one would write it, the authors' algorithm, other packages.

`WAYS[op][name](case)` gives what to time and how to check its answer (None: it answers another question, see
`OTHER_ANSWERS`); it raises `Absent` with the reason where it cannot run. Nothing here is fast on purpose or slow on
purpose.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitcop_kernels.bench.sampling import Way
from vitcop_kernels.testing.op import Case, compiled

Check = Callable[[Any], None]
OTHER_ANSWERS = {
    "pydpc": "density and nearest denser token at any distance, in float64; no centres, no labels",
    "sklearn KMeans": "another clustering: k-means, 10 iterations from one start",
    "flash-kmeans": "another clustering: k-means, 10 iterations",
    "ToMe matching": "another merging: of some of one half of the tokens into the most similar of the other half",
}
AUTHORS_TOKENS = 600  # beyond, a call takes seconds and gigabytes


class Absent(RuntimeError):
    """Why there is nothing to time: not installed, or of no use at this size or on this device."""


def installed(module: str, how: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Absent(f"not installed ({how})") from None


def require(holds: bool, why: str) -> None:
    if not holds:
        raise Absent(why)


def same_labels(case: Case) -> Check:
    """Nearly equal densities may fall the other way in float32: 2 % of the labels may differ."""
    want = case.reference()[0]

    def check(answer: Any) -> None:
        share = (answer[0] == want).float().mean().item()
        assert share >= 0.98, f"only {share:.1%} of the labels are right"

    return check


def close(case: Case) -> Check:
    want = case.reference()
    rtol = 1e-4 if case.dtype == torch.float32 else 2e-2  # one rounding to the dtype, or sums in another order

    def check(answer: Any) -> None:
        torch.testing.assert_close(answer, want, rtol=rtol, atol=rtol)

    return check


# ----------------------------------------------------------------------------------------------------------- clustering
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


def _cluster(x: Tensor, places: Tensor, d_c: float, tau: float, k: int) -> tuple[Tensor, ...]:
    if x.dim() == 2:
        return cluster_with_cdist(x.float(), places, d_c, tau, k)
    found = [cluster_with_cdist(sample.float(), places, d_c, tau, k) for sample in x]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _authors(case: Case) -> tuple[Way, Check | None]:
    x, places, d_c, tau, k = case.args
    require(case.dims["batch"] * case.dims["tokens"] <= AUTHORS_TOKENS, "takes seconds and gigabytes at this size")

    def run() -> Any:
        found = [cluster_as_released(sample.float(), places, d_c, tau, k) for sample in x]
        return [torch.stack(parts) for parts in zip(*found, strict=True)]

    return run, same_labels(case)


def _pydpc(case: Case) -> tuple[Way, Check | None]:
    pydpc = installed("pydpc", "pip install 'vitcop[peers]'")
    require(case.dims["batch"] == 1 and case.device.type == "cpu", "takes one sample, on a CPU")
    x, places, d_c, _, k = case.args
    points = x[0].double().numpy()
    want = torch.ops.vitcop_reference.vic_cluster(x[0], places, d_c, float("inf"), k)

    def check(answer: Any) -> None:
        torch.testing.assert_close(torch.from_numpy(answer.density).float(), want[3].float(), rtol=1e-3, atol=1e-6)
        parent = torch.from_numpy(answer.neighbour).long()
        assert ((parent == want[2]) | (want[2] < 0)).float().mean() >= 0.98, "other nearest denser tokens"

    return lambda: pydpc.Cluster(points, kernel_size=d_c, autoplot=False), check


def _kmeans(case: Case) -> tuple[Way, Check | None]:
    sklearn = installed("sklearn.cluster", "pip install 'vitcop[peers]'")
    require(case.dims["batch"] == 1 and case.device.type == "cpu", "takes one sample, on a CPU")
    model = sklearn.KMeans(n_clusters=case.args[4], n_init=1, max_iter=10, random_state=0)
    points = case.args[0][0].float().numpy()
    return lambda: model.fit_predict(points), None


def _flash_kmeans(case: Case) -> tuple[Way, Check | None]:
    module = installed("flash_kmeans", "pip install flash-kmeans, with a CUDA torch")
    require(case.device.type == "cuda", "its kernels need a GPU")
    x, k = case.args[0], case.args[4]
    return lambda: module.batch_kmeans_Euclid(x, n_clusters=k, max_iters=10), None


# -------------------------------------------------------------------------------------------------------------- merging
def segment_mean_by_index_add(x: Tensor, segment: Tensor, lengths: Tensor) -> Tensor:
    """[N, C], the segment of each token and the segments' lengths."""
    sums = torch.zeros(len(lengths), x.shape[1], dtype=torch.float32, device=x.device).index_add_(0, segment, x.float())
    return (sums / lengths[:, None]).to(x.dtype)


def _segment_of(perm: Tensor, bounds: Tensor) -> Tensor:
    place = torch.arange(perm.shape[0], device=perm.device)
    return torch.searchsorted(bounds[1:].contiguous(), place, right=True)[perm.argsort()]


def _segment_mean(x: Tensor, perm: Tensor, offsets: Tensor) -> Tensor:
    samples = zip(x, perm, offsets, strict=True)
    return torch.stack([segment_mean_by_index_add(s, _segment_of(p, o), o.diff()) for s, p, o in samples])


def _compact_sequence(x: Tensor, companions: list[Tensor], perm: Tensor, offsets: Tensor, anchors: Tensor) -> Any:
    means = []
    for sample, order, bounds in zip(x, perm, offsets, strict=True):
        place = torch.arange(order.shape[0], device=x.device)
        segment = torch.searchsorted(bounds[1:].contiguous(), place, right=True)  # the last: dropped tokens
        rows = sample.index_select(0, order).float()
        total = rows.new_zeros(anchors.shape[1] + 1, x.shape[2]).index_add_(0, segment, rows)[:-1]
        means.append((total / bounds.diff()[:, None]).to(x.dtype))
    return torch.stack(means), [t.index_select(1, anchors[0]) for t in companions]


def tome_matching(x: Tensor, merges: int) -> Tensor:
    """ToMe's bipartite soft matching in our own words, [N, C] -> [N - merges, C].

    Every second token looks for the most similar one (cosine) of the others; the `merges` best pairs become means,
    weighted by how many tokens each holds.
    """
    unit = F.normalize(x.float(), dim=-1)
    score, to = (unit[::2] @ unit[1::2].T).max(-1)
    order = score.argsort(descending=True)
    merged, kept = order[:merges], order[merges:].sort().values
    sources, targets = x[::2].float(), x[1::2].float()
    sums = targets.index_add(0, to[merged], sources[merged])
    counts = torch.ones(len(targets), device=x.device).index_add(0, to[merged], torch.ones(merges, device=x.device))
    return torch.cat([sources[kept], sums / counts[:, None]]).to(x.dtype)


def _one_sample(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    require(case.dims["batch"] == 1, "takes one sample")
    x, perm, offsets = (t[0] for t in case.args)
    return x, perm, offsets, _segment_of(perm, offsets), offsets.diff()


def _scatter_reduce(case: Case) -> tuple[Way, Check | None]:
    x, _, _, segment, lengths = _one_sample(case)
    where = segment[:, None].expand_as(x)

    def run() -> Tensor:  # what torch-scatter's scatter_mean became
        zeros = torch.zeros(len(lengths), x.shape[1], dtype=x.dtype, device=x.device)
        return zeros.scatter_reduce(0, where, x, "mean", include_self=False)[None]

    return run, close(case)


def _index_add(case: Case) -> tuple[Way, Check | None]:
    x, _, _, segment, lengths = _one_sample(case)
    return lambda: segment_mean_by_index_add(x, segment, lengths)[None], close(case)


def _segment_reduce(case: Case) -> tuple[Way, Check | None]:
    x, perm, offsets, *_ = _one_sample(case)
    return lambda: torch.segment_reduce(x[perm], "mean", offsets=offsets, unsafe=True)[None], close(case)


def _tome(case: Case) -> tuple[Way, Check | None]:
    x, _, offsets, *_ = _one_sample(case)
    merges = len(x) - len(offsets) + 1
    require(merges <= len(x) // 2, "merges at most half of the tokens")
    return lambda: tome_matching(x, merges), None


# ------------------------------------------------------------------------------------------------- the rest, in PyTorch
def _attention_saliency(query: Tensor, key: Tensor) -> Tensor:
    """Scores of a few rows only, as the op takes them: softmax in float32, summed over heads and rows."""
    share = query.shape[1] // key.shape[1]
    grouped = query.unflatten(1, (key.shape[1], share)).flatten(2, 3)  # [B, Hkv, share*M, d]
    scores = grouped @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1, dtype=torch.float32).sum((1, 2))


def _key_norms(keys: Tensor) -> Tensor:
    return torch.linalg.vector_norm(keys, dim=(-3, -1), dtype=torch.float32)


def _key_proj(hidden: Tensor, weight: Tensor, bias: None = None, *, num_heads: int) -> tuple[Tensor, Tensor]:
    flat = F.linear(hidden, weight)
    keys = flat.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return keys, torch.linalg.vector_norm(flat, dim=-1, dtype=torch.float32)


def _key_proj_norms(hidden: Tensor, weight: Tensor, bias: None, rms: Tensor, *, num_heads: int) -> Tensor:
    keys = F.linear(F.rms_norm(hidden, (hidden.shape[-1],), rms, 1e-6), weight)
    return torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)


def _select_tokens(scores: Tensor, k: int, largest: bool = False) -> Tensor:
    return scores.topk(k, largest=largest, sorted=False).indices.sort(-1).values


EAGER: dict[str, Callable[..., Any]] = {
    "attention_saliency": _attention_saliency,
    "compact_sequence": _compact_sequence,
    "key_norms": _key_norms,
    "key_proj": _key_proj,
    "key_proj_norms": _key_proj_norms,
    "segment_mean": _segment_mean,
    "select_tokens": _select_tokens,
    "vic_cluster": _cluster,
}


def _eager(op: str) -> Callable[[Case], tuple[Way, Check | None]]:
    def make(case: Case) -> tuple[Way, Check | None]:
        check = same_labels(case) if op == "vic_cluster" else close(case)
        return lambda: EAGER[op](*case.args, **case.kwargs), check

    return make


def _eager_compiled(op: str) -> Callable[[Case], tuple[Way, Check | None]]:
    def make(case: Case) -> tuple[Way, Check | None]:
        run, (_, check) = compiled(EAGER[op]), _eager(op)(case)
        return lambda: run(*case.args, **case.kwargs), check

    return make


WAYS: dict[str, dict[str, Callable[[Case], tuple[Way, Check | None]]]] = {
    op: {"eager": _eager(op), "eager compiled": _eager_compiled(op)} for op in EAGER
}
WAYS["vic_cluster"] |= {"authors": _authors, "pydpc": _pydpc, "sklearn KMeans": _kmeans, "flash-kmeans": _flash_kmeans}
WAYS["segment_mean"] |= {
    "index_add": _index_add,
    "scatter_reduce": _scatter_reduce,
    "segment_reduce": _segment_reduce,
    "ToMe matching": _tome,
}
