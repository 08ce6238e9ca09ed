"""What else does the work of an op, or work like it: other packages where they are installed, ToMe in our own words.

`others(case)` gives what can be timed beside a case, `absent(case)` the reasons for what cannot. A peer that answers
the same question is held to the same answer; what others answer is in `OTHER_ANSWERS`.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import baselines
from vitcop_kernels.bench.cases import Case, compiled
from vitcop_kernels.bench.sampling import Way

Check = Callable[[Any], None]
AUTHORS = "the authors' algorithm"
EAGER, EAGER_COMPILED = "eager PyTorch", "eager PyTorch, compiled"
OTHER_ANSWERS = {
    "pydpc": "density and nearest denser token at any distance, in float64; no centres, no labels",
    "sklearn KMeans": "another clustering: k-means, 10 iterations from one start",
    "sklearn MiniBatchKMeans": "another clustering: k-means on samples, 10 iterations",
    "flash-kmeans": "another clustering: k-means, 10 iterations",
    "ToMe matching": "another merging: of some of one half of the tokens into the most similar of the other half",
}
SAME_ANSWERS = (AUTHORS, EAGER, EAGER_COMPILED, "index_add", "scatter_reduce", "segment_reduce")
AUTHORS_BYTES, AUTHORS_TOKENS = 4 << 30, 1024  # beyond, one call takes longer than seconds, or more memory than that


def same_labels(case: Case) -> Check:
    """Nearly equal densities may fall the other way in float32: 2 % of the labels may differ."""
    want = case.reference()[0]

    def check(answer: Any) -> None:
        share = (answer == want).float().mean().item()
        assert share >= 0.98, f"only {share:.1%} of the labels are right"

    return check


def close(case: Case) -> Check:
    want = case.reference()
    rtol = 1e-4 if case.dtype == "float32" else 2e-2  # one rounding to the dtype, or sums of 4096 in another order

    def check(answer: Any) -> None:
        torch.testing.assert_close(answer, want, rtol=rtol, atol=rtol)

    return check


def others(case: Case, compile: bool = False) -> dict[str, tuple[Way, Check | None]]:
    """Name -> what to time and the check of its answer. `compile`: eager PyTorch under torch.compile, too."""
    found = _OTHERS[case.op](case) if case.op in _OTHERS else {}
    if case.op in _EAGER:
        function, check = _EAGER[case.op], (same_labels if case.op == "vic_cluster" else close)(case)
        found[EAGER] = (lambda: function(*case.args, **case.kwargs), check)
        if compile:
            run = compiled(function)
            found[EAGER_COMPILED] = (lambda: run(*case.args, **case.kwargs), check)
    return found


def absent(case: Case) -> dict[str, str]:
    """What is not run, with the reason: not installed, or of no use at this size or on this device."""
    found = {}
    if case.op == "vic_cluster":
        for name, module in (("pydpc", "pydpc"), ("sklearn KMeans", "sklearn"), ("sklearn MiniBatchKMeans", "sklearn")):
            if not _installed(module):
                found[name] = "not installed (pip install 'vitcop[peers]')"
        if not _installed("flash_kmeans"):
            found["flash-kmeans"] = "not installed (pip install flash-kmeans, with a CUDA torch)"
        elif case.device.type != "cuda":
            found["flash-kmeans"] = "its kernels are Triton's and need a GPU"
        reason = _too_large_for_the_authors(case)
        if reason:
            found[AUTHORS] = reason
        if case.dims["batch"] > 1:
            found |= dict.fromkeys(("pydpc", "sklearn KMeans", "sklearn MiniBatchKMeans"), "takes one sample at a time")
    if case.op == "segment_mean" and case.dims["tokens"] - case.dims["budget"] > case.dims["tokens"] // 2:
        found["ToMe matching"] = "merges at most half of the tokens"
    return found


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _too_large_for_the_authors(case: Case) -> str | None:
    n, width, batch = (case.dims[name] for name in ("tokens", "width", "batch"))
    need = 3 * 4 * n * n * width  # the difference, its square, and what the sum reads
    if need > AUTHORS_BYTES:
        return f"its N x N x D differences need {need / 2**30:.0f} GiB"
    if batch * n > AUTHORS_TOKENS:
        return f"its loops over tokens take seconds and more above {AUTHORS_TOKENS} tokens"
    return None


# ----------------------------------------------------------------------------------------------------------- clustering
def _clusterings(case: Case) -> dict[str, tuple[Way, Check | None]]:
    x, places, d_c, tau, k = case.args
    check = same_labels(case)

    def authors() -> Tensor:
        return torch.stack([baselines.cluster_as_released(sample.float(), places, d_c, tau, k)[0] for sample in x])

    found: dict[str, tuple[Way, Check | None]] = {}
    if not _too_large_for_the_authors(case):
        found[AUTHORS] = (authors, check)
    if case.dims["batch"] > 1 or case.device.type != "cpu":
        return found | _flash_kmeans(case)
    single = x[0].float().numpy()
    if _installed("pydpc"):
        found["pydpc"] = (_pydpc(x[0], d_c), _same_densities(case))
    if _installed("sklearn"):
        from sklearn.cluster import KMeans, MiniBatchKMeans

        for name, kind in (("sklearn KMeans", KMeans), ("sklearn MiniBatchKMeans", MiniBatchKMeans)):
            model = kind(n_clusters=k, n_init=1, max_iter=10, random_state=0)
            found[name] = (lambda model=model: model.fit_predict(single), None)
    return found


def _pydpc(x: Tensor, d_c: float) -> Way:
    from pydpc import Cluster

    points = x.double().numpy()
    return lambda: Cluster(points, kernel_size=d_c, autoplot=False)


def _same_densities(case: Case) -> Check:
    x, places, d_c, _, k = case.args
    want = torch.ops.vitcop_reference.vic_cluster(x[0], places, d_c, float("inf"), k)

    def check(answer: Any) -> None:
        torch.testing.assert_close(torch.from_numpy(answer.density).float(), want[3].float(), rtol=1e-3, atol=1e-6)
        parent = torch.from_numpy(answer.neighbour).long()
        assert ((parent == want[2]) | (want[2] < 0)).float().mean() >= 0.98, "other nearest denser tokens"

    return check


def _flash_kmeans(case: Case) -> dict[str, tuple[Way, Check | None]]:
    if case.device.type != "cuda" or not _installed("flash_kmeans"):
        return {}
    from flash_kmeans import batch_kmeans_Euclid

    x, k = case.args[0], case.args[4]
    return {"flash-kmeans": (lambda: batch_kmeans_Euclid(x, n_clusters=k, max_iters=10), None)}


# -------------------------------------------------------------------------------------------------------------- merging
def tome_matching(x: Tensor, merges: int) -> Tensor:
    """ToMe's bipartite soft matching in our own words, [N, C] -> [N - merges, C].

    Every second token looks for the most similar one (cosine) of the others; the `merges` best pairs become means,
    weighted by how many tokens each holds.
    """
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    score, to = (unit[::2] @ unit[1::2].T).max(-1)
    order = score.argsort(descending=True)
    merged, kept = order[:merges], order[merges:].sort().values
    sources, targets = x[::2].float(), x[1::2].float()
    sums = targets.index_add(0, to[merged], sources[merged])
    counts = torch.ones(len(targets), device=x.device).index_add(0, to[merged], torch.ones(merges, device=x.device))
    return torch.cat([sources[kept], sums / counts[:, None]]).to(x.dtype)


def _segment_means(case: Case) -> dict[str, tuple[Way, Check | None]]:
    if case.dims["batch"] > 1:
        return {}
    x, perm, offsets = (t[0] for t in case.args)
    lengths = offsets.diff()
    index = torch.arange(len(lengths), device=x.device)
    segment = torch.empty_like(perm).scatter_(0, perm, torch.repeat_interleave(index, lengths))
    where, check = segment[:, None].expand_as(x), close(case)

    def scatter_reduce() -> Tensor:  # what torch-scatter's scatter_mean became
        zeros = torch.zeros(len(lengths), x.shape[1], dtype=x.dtype, device=x.device)
        return zeros.scatter_reduce(0, where, x, "mean", include_self=False)[None]

    found: dict[str, tuple[Way, Check | None]] = {
        "index_add": (lambda: baselines.segment_mean_by_index_add(x, segment, lengths)[None], check),
        "scatter_reduce": (scatter_reduce, check),
        "segment_reduce": (lambda: baselines.segment_mean_by_reduce(x, perm, offsets)[None], check),
    }
    merges = len(x) - len(lengths)
    if merges <= len(x) // 2:
        found["ToMe matching"] = (lambda: tome_matching(x, merges), None)
    return found


# ------------------------------------------------------------------------------------- what one would write in PyTorch
def _cluster(x: Tensor, places: Tensor, d_c: float, tau: float, k: int) -> Tensor:
    return torch.stack([baselines.cluster_with_cdist(sample.float(), places, d_c, tau, k)[0] for sample in x])


_OTHERS: dict[str, Callable[[Case], dict[str, tuple[Way, Check | None]]]] = {
    "vic_cluster": _clusterings,
    "segment_mean": _segment_means,
}
_EAGER: dict[str, Callable[..., Any]] = {
    "vic_cluster": _cluster,
    "key_norms": baselines.key_norms_flat,
    "attention_saliency": baselines.attention_saliency,
    "select_tokens": baselines.select_tokens,
    "key_proj": baselines.key_proj,
    "key_proj_norms": lambda hidden, weight, bias, rms, *, num_heads: baselines.key_proj_norms(
        hidden, weight, rms, 1e-6
    ),
}
