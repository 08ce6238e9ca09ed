"""Ops x real shapes: each row makes its inputs, names the ways to compare and checks our answer before it is timed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import vitcop_kernels  # noqa: F401  (registers torch.ops.vitcop)
from benchmarks import baselines
from vitcop_kernels.bench.inputs import tokens

Way = Callable[[], Any]
OURS = "vitcop"


@dataclass
class Row:
    """One comparison. `targets[name]` is the largest allowed ratio of ours over `name`; the rest is for information."""

    op: str
    shape: str
    ways: dict[str, Way]
    check: Callable[[], None]
    targets: dict[str, float] = field(default_factory=dict)
    best_of: tuple[str, ...] = ()  # ways of which the fastest counts, against one target
    rounds: int = 15


def _close(ours: Way, want: Any, rtol: float) -> Callable[[], None]:
    def check() -> None:
        torch.testing.assert_close(ours(), want, rtol=rtol, atol=1e-6)

    return check


def _agrees(features: Tensor, args: tuple[Any, ...]) -> Callable[[], None]:
    """Labels equal to the reference's; a near-tie may move a few of them at large N."""

    def check() -> None:
        got, want = (
            torch.ops.vitcop.vic_cluster(features, *args),
            torch.ops.vitcop_reference.vic_cluster(features, *args),
        )
        same = (got[0] == want[0]).float().mean().item()
        assert same > 0.98, f"only {same:.1%} of the labels equal the reference's"

    return check


def vic_cluster(compiled: bool = True) -> Iterator[Row]:
    for n in (172, 288, 576, 864):
        features, places = tokens(n)
        args = (places, 8.0, 0.6, math.ceil(0.15 * n))
        ways: dict[str, Way] = {
            OURS: lambda features=features, args=args: torch.ops.vitcop.vic_cluster(features, *args),
            "sgemm of the Gram matrix": lambda f=features: torch.mm(f, f.T),
            "cdist, vectorised": lambda f=features, args=args: baselines.cluster_with_cdist(f, *args),
        }
        if compiled and n in (172, 576):
            run = torch.compile(baselines.cluster_with_cdist, dynamic=False)
            ways["cdist, torch.compile"] = lambda f=features, args=args, run=run: run(f, *args)
        yield Row(
            "vic_cluster",
            f"N={n} D=1024 float32",
            ways,
            _agrees(features, args),
            {"sgemm of the Gram matrix": 1.0},
            rounds=31,
        )

    for n in (172, 576):
        features, places = tokens(n)
        args, half = (places, 8.0, 0.6, math.ceil(0.15 * n)), features.bfloat16()
        ways = {
            OURS: lambda f=half, args=args: torch.ops.vitcop.vic_cluster(f, *args),
            "float32": lambda f=features, args=args: torch.ops.vitcop.vic_cluster(f, *args),
        }
        yield Row("vic_cluster", f"N={n} D=1024 bfloat16", ways, _agrees(half, args), {"float32": 1.0}, rounds=31)
    for n in (172, 288):
        batch, places = tokens(n, batch=8)
        args = (places, 8.0, 0.6, math.ceil(0.15 * n))

        def one_by_one(batch: Tensor = batch, args: tuple[Any, ...] = args) -> None:
            for sample in batch:
                torch.ops.vitcop.vic_cluster(sample, *args)

        ways = {
            OURS: lambda f=batch, args=args: torch.ops.vitcop.vic_cluster(f, *args),
            "8 calls of one sample": one_by_one,
        }
        yield Row(
            "vic_cluster", f"B=8 N={n} D=1024 float32", ways, _agrees(batch, args), {"8 calls of one sample": 1.0}
        )

    features, places = tokens(172)
    args = (places, 8.0, 0.6, 26)
    ways = {
        OURS: lambda: torch.ops.vitcop.vic_cluster(features, *args),
        "as released: N x N x D and Python loops": lambda: baselines.cluster_as_released(features, *args),
    }
    yield Row("vic_cluster", "N=172 D=1024 float32, for the record", ways, _agrees(features, args), rounds=5)


def csr(n: int, budget: int, clusters: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    labels, scores = torch.randint(0, clusters, (n,), generator=generator), torch.rand(n, generator=generator)
    return labels, scores, *torch.ops.vitcop_reference.plan_tokens(labels, scores, clusters, budget)


def merging() -> Iterator[Row]:
    """Plan and merge at the width of LLaVA-1.5-7B, beside the layer whose input they prune."""
    labels, scores, *_ = csr(288, 253, 52)
    sequence, layer = torch.randn(1, 288 + 57, 4096), baselines.DecoderLayer().eval()
    x = sequence[0, :288].contiguous()

    def merge() -> Tensor:
        perm, offsets, anchors, merged = torch.ops.vitcop.plan_tokens(labels, scores, 52, 77)
        return torch.ops.vitcop.segment_mean(x, perm, offsets, anchors, merged)

    def prefill() -> Tensor:
        with torch.no_grad():
            return layer(sequence)

    def check() -> None:
        perm, offsets, *_ = torch.ops.vitcop_reference.plan_tokens(labels, scores, 52, 77)
        torch.testing.assert_close(
            merge(), torch.ops.vitcop_reference.segment_mean(x, perm, offsets), rtol=1e-5, atol=1e-5
        )

    other = "one decoder layer, 288+57 tokens"
    yield Row(
        "plan_tokens + segment_mean",
        "N=288 C=4096 float32",
        {OURS: merge, other: prefill},
        check,
        {other: 0.05},
        rounds=7,
    )


def others() -> Iterator[Row]:
    """Every other op beside its best eager equivalent."""
    for dtype, rtol in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        kind = str(dtype).removeprefix("torch.")
        keys = torch.randn(1, 288, 32, 128).to(dtype).transpose(1, 2)
        ways: dict[str, Way] = {
            OURS: lambda keys=keys: torch.ops.vitcop.key_norms(keys),
            "square, sum, sqrt": lambda keys=keys: baselines.key_norms(keys),
            "vector_norm": lambda keys=keys: baselines.key_norms_flat(keys),
        }
        yield _eager("key_norms", f"H=32 N=288 d=128 {kind}", ways, torch.ops.vitcop_reference.key_norms(keys), rtol)

        hidden, weight, rms = (
            torch.randn(1, 288, 4096).to(dtype),
            (torch.randn(4096, 4096) / 64).to(dtype),
            torch.rand(4096).to(dtype),
        )
        keys_and_norms = torch.ops.vitcop_reference.key_proj(hidden, weight, num_heads=32)
        ways = {
            OURS: lambda h=hidden, w=weight: torch.ops.vitcop.key_proj(h, w, num_heads=32),
            "linear, vector_norm": lambda h=hidden, w=weight: baselines.key_proj(h, w, 32),
        }
        # 99 % of either side is the same library's GEMM: 2 % is what interleaved medians of it resolve.
        yield _eager(
            "key_proj", f"N=288 C=4096 {kind}", ways, keys_and_norms, max(rtol, 1e-4), rounds=9, atol=1e-4, target=1.02
        )
        norms = torch.ops.vitcop_reference.key_proj_norms(hidden, weight, None, rms, num_heads=32)
        ways = {
            OURS: lambda h=hidden, w=weight, r=rms: torch.ops.vitcop.key_proj_norms(h, w, None, r, num_heads=32),
            "rms_norm, linear, vector_norm": lambda h=hidden, w=weight, r=rms: baselines.key_proj_norms(h, w, r, 1e-6),
        }
        yield _eager("key_proj_norms", f"N=288 C=4096 {kind}", ways, norms, max(rtol, 1e-4), rounds=9)

        for name, heads, n, d in (("CLS row of CLIP", 16, 577, 64), ("last prompt row of Llama", 32, 633, 128)):
            query, key = torch.randn(1, heads, 1, d).to(dtype), torch.randn(1, n, heads, d).to(dtype).transpose(1, 2)
            want = torch.ops.vitcop_reference.attention_saliency(query, key)
            ways = {
                OURS: lambda q=query, k=key: torch.ops.vitcop.attention_saliency(q, k),
                "matmul, softmax, sum": lambda q=query, k=key: baselines.attention_saliency(q, k),
            }
            yield _eager("attention_saliency", f"{name} H={heads} N={n} {kind}", ways, want, 1e-4)

        x = torch.randn(345, 4096).to(dtype)
        _, _, perm, offsets, *_ = csr(345, 134, 30)
        lengths = offsets.diff()
        segment = torch.empty_like(perm).scatter_(0, perm, torch.repeat_interleave(torch.arange(134), lengths))
        ways = {
            OURS: lambda x=x, p=perm, o=offsets: torch.ops.vitcop.segment_mean(x, p, o),
            "index_add": lambda x=x, s=segment, n=lengths: baselines.segment_mean_by_index_add(x, s, n),
            "segment_reduce": lambda x=x, p=perm, o=offsets: baselines.segment_mean_by_reduce(x, p, o),
        }
        yield _eager(
            "segment_mean",
            f"345 to 134 tokens C=4096 {kind}",
            ways,
            torch.ops.vitcop_reference.segment_mean(x, perm, offsets),
            rtol,
        )

    for batch, n, k in ((1, 576, 288), (1, 172, 15), (8, 576, 64)):
        scores = torch.rand(batch, n)
        ways = {
            OURS: lambda s=scores, k=k: torch.ops.vitcop.select_tokens(s, k),
            "topk, sort": lambda s=scores, k=k: baselines.select_tokens(s, k),
        }
        yield _eager(
            "select_tokens", f"B={batch} N={n} k={k}", ways, torch.ops.vitcop_reference.select_tokens(scores, k), 0
        )
    for n, budget, clusters in ((288, 253, 52), (172, 77, 21)):
        labels, scores, *want = csr(n, budget, clusters)
        ways = {
            OURS: lambda c=labels, s=scores, k=clusters, b=budget: torch.ops.vitcop.plan_tokens(c, s, k, b),
            "the reference": lambda c=labels, s=scores, k=clusters, b=budget: torch.ops.vitcop_reference.plan_tokens(
                c, s, k, b
            ),
        }
        yield _eager("plan_tokens", f"N={n} budget={budget} clusters={clusters}", ways, tuple(want), 0)


def _eager(
    op: str,
    shape: str,
    ways: dict[str, Way],
    want: Any,
    rtol: float,
    rounds: int = 15,
    atol: float = 1e-5,
    target: float = 1.0,
) -> Row:
    def check() -> None:
        torch.testing.assert_close(ways[OURS](), want, rtol=rtol, atol=atol)

    names = tuple(name for name in ways if name != OURS)
    return Row(op, shape, ways, check, {"best eager": target}, names, rounds)


def rows(compiled: bool = True) -> Iterator[Row]:
    yield from vic_cluster(compiled)
    yield from merging()
    yield from others()
