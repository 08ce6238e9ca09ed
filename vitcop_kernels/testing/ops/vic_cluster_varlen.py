"""vic_cluster_varlen in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import TOKENS, WIDTHS, Bytes
from ..draw import FLOATS, Draw
from ..inputs import FLOAT, Random, f, i64, normal
from ..op import Arguments, BadCall, Dims, Drawn, Dynamic, Op, Shape, share
from ..permutation import Outcome, Shuffle, outcome
from ._clustering import (
    CLUSTERING,
    D_C,
    TAU,
    Clustering,
    built_options,
    check_values,
    cluster_flops,
    drawn_features,
    drawn_options,
    drawn_positions,
)


def make(c: Dims, r: Random) -> Arguments:
    x, places = r.features(c["batch"], c["tokens"], c["width"])
    bounds = torch.arange(c["batch"] + 1, dtype=torch.int32) * c["tokens"]
    return (x.flatten(0, 1), places.repeat(c["batch"], 1), bounds, c["tokens"], D_C, TAU, c["clusters"]), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    cu = torch.tensor([0, 5, 5, 16], dtype=torch.int32)
    yield (r(16, 5), torch.rand(16, 2), cu, 11, 3.0, 0.5, 4), {}
    yield (
        (r(16, 5), None, cu.long(), 12, 3.0, 0.5, 4, torch.tensor([1, 2, 3])),
        dict(semantics="released", density="knn"),
    )


def dynamic(b: int, n: int) -> Dynamic:
    def call(x: Tensor, places: Tensor, cu: Tensor) -> Any:
        longest = x.shape[0] // (cu.shape[0] - 1)
        return vitcop_kernels.vic_cluster_varlen(x, places, cu, longest, 3.0, 0.5, longest // 4)

    args = torch.randn(b * n, 5), torch.rand(b * n, 2), torch.arange(b + 1, dtype=torch.int32) * n
    return call, args, ((0,), (0,), (0,))


def draw(d: Draw) -> Drawn:
    """Ragged samples, some of them empty."""
    lengths = [d.pick([0, 1, d.tokens(square=True)]) for _ in range(d.integer(1, 5))]
    if sum(lengths) == 0:
        lengths[-1] = 1
    total, longest = sum(lengths), max(lengths)
    d.marks |= {"samples of different lengths"} if len(set(lengths)) > 1 else set()
    d.marks |= {"empty samples among others"} if 0 in lengths else set()
    dtype, structure, x, cutoff = drawn_features(d, (), total)
    places, tau = drawn_positions(d, (), total)
    cu = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=d.pick([torch.int32, torch.int64]))
    counts = None
    if d.chance(3):
        counts = torch.from_numpy(d.integers(-1, longest + 2, (len(lengths),)))
    bound = longest + d.pick([0, 0, 5])
    args = (d.laid_out(x), places, cu, bound, cutoff, tau, d.edge(1, bound), counts)
    return dtype, structure, total, args, drawn_options(d)


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    tokens, batch = b.pick(TOKENS), b.pick((2, 1, 5))
    inner = b.ints(batch - 1, high=tokens + 1).sort().values
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), inner, torch.tensor([tokens])])
    longest = max(1, int(cu.diff().max()))
    return dict(
        features=b.floats(tokens, b.pick(WIDTHS), dtype=dtype),
        positions=b.maybe(lambda: b.floats(tokens, b.pick((2, 1, 0, 3)), dtype=b.pick(FLOATS))),
        cu_seqlens=b.spoiled(cu.to(b.pick((torch.int32, torch.int64))), tokens),
        max_seqlen=b.pick((longest, tokens, 1, 2**44, 2**63 - 1)),
        num_centers=1 + b.below(longest),
        center_counts=b.maybe(lambda: b.spoiled(b.ints(batch, high=tokens), tokens)),
        **built_options(b),
    )


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    n, x, places, k = s.n, s.normal(s.n, 12), torch.rand(s.n, 2, generator=s.generator), max(1, s.n // 6)
    cut = n // 3
    cu, other = torch.tensor([0, cut, n]), torch.tensor([0, n - cut, n])
    turned = torch.cat([torch.arange(cut, n), torch.arange(cut)])
    got, want = call(x[turned], places[turned], other, n, 4.0, 0.5, k), call(x, places, cu, n, 4.0, 0.5, k)
    return outcome(list(got), [t.flip(0) if i == 1 else t[turned] for i, t in enumerate(want)])


GOOD = dict(
    features=f(9, 4),
    positions=f(9, 2),
    cu_seqlens=torch.tensor([0, 4, 9]),
    max_seqlen=5,
    d_c=8.0,
    tau=0.6,
    num_centers=3,
    center_counts=None,
)
BAD: list[BadCall] = [
    *CLUSTERING,
    (dict(features=i64(9, 4)), TypeError, f"features: {FLOAT}, got int64"),
    (dict(features=f(2, 9, 4)), ValueError, "features: expected [T, D], got [2, 9, 4]"),
    (dict(features=f(0, 4)), ValueError, "features.shape[0] (tokens): expected at least 1, got 0"),
    (dict(positions=i64(9, 2)), TypeError, f"positions: {FLOAT}, got int64"),
    (dict(positions=f(1, 9, 2)), ValueError, "positions: expected [T, P], got [1, 9, 2]"),
    (dict(positions=f(8, 2)), ValueError, "positions: expected [9, 2], got [8, 2]"),
    (dict(cu_seqlens=f(3)), TypeError, "cu_seqlens: expected int32 or int64, got float32"),
    (dict(cu_seqlens=i64(1, 3)), ValueError, "cu_seqlens: expected [B+1], got [1, 3]"),
    (dict(cu_seqlens=i64(1)), ValueError, "cu_seqlens.shape[0] (B+1): expected at least 2, got 1"),
    (dict(max_seqlen=0), ValueError, "max_seqlen: expected at least 1, got 0"),
    (dict(num_centers=0), ValueError, "num_centers: expected an integer in [1, 5], got 0"),
    (dict(num_centers=6), ValueError, "num_centers: expected an integer in [1, 5], got 6"),
    (dict(center_counts=f(2)), TypeError, "center_counts: expected int64 or int32, got float32"),
    (dict(center_counts=i64(3)), ValueError, "center_counts: expected [2], got [3]"),
]


OP = Op(
    dims={"batch": 5, "tokens": 172, "width": 1024, "clusters": share("tokens", 0.15)},
    make=make,
    flops=cluster_flops,
    shapes=(
        Shape({"batch": 5, "tokens": 172, "clusters": 21}, where="2880 tokens, tile by tile"),
        Shape({"batch": 5, "tokens": 172, "clusters": 70}, "bfloat16", where="2880 tokens, tile by tile"),
        Shape({"batch": 32, "tokens": 43, "clusters": 18}, "bfloat16", where="video, frame by frame"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("positions", "features"), ("cu_seqlens", "features")),
    truth=Clustering,
    permute=permute,
    permuted="Samples in another order: the same bits, sample by sample.",
    by_value=("cu_seqlens",),
    values=check_values,
)
