"""vic_cluster in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import vitcop_kernels

from ..boundary import TOKENS, WIDTHS, Bytes
from ..draw import FLOATS, Draw
from ..inputs import FLOAT, Random, boolean, f, i64, normal
from ..op import Arguments, BadCall, Dims, Drawn, Dynamic, Op, Shape, share
from ..permutation import Outcome, Shuffle
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
    return (*r.features(c["batch"], c["tokens"], c["width"]), D_C, TAU, c["clusters"]), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[0, 9:] = False
    counts = torch.tensor([2, 5])
    yield (r(2, 16, 5), torch.rand(16, 2), 3.0, 0.5, 4), {}
    yield (r(2, 16, 5), torch.rand(2, 16, 2), 3.0, 0.5, 5, valid, counts), dict(semantics="released")
    yield (r(16, 5), None, 3.0, 0.5, 4), dict(metric="cosine", density="knn", assign="nearest", root_delta="max")


def dynamic(b: int, n: int) -> Dynamic:
    args = torch.randn(b, n, 5), torch.rand(n, 2)
    return lambda x, places: vitcop_kernels.vic_cluster(x, places, 3.0, 0.5, x.shape[-2] // 4), args, ((0, 1), (0,))


def draw(d: Draw) -> Drawn:
    n = d.tokens(square=True)
    batch = (d.batch(n**2) or ()) if n <= 512 else d.pick([(), (1,)])
    dtype, structure, x, cutoff = drawn_features(d, batch, n)
    places, tau = drawn_positions(d, batch, n)
    valid = counts = None
    if d.chance(4):
        d.marks.add("padding")
        valid = d.laid_out(torch.from_numpy(d.rng.random((*batch, n)) < d.pick([0.0, 0.5, 0.9])))
    if d.chance(4):
        counts = torch.from_numpy(d.integers(-1, n + 2, batch)).to(d.pick([torch.int64, torch.int32]))
    args = (d.laid_out(x, True), places, cutoff, tau, d.edge(1, n), valid, counts)
    return dtype, structure, n, args, drawn_options(d)


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, tokens = b.batch(), b.pick(TOKENS)
    features = b.floats(*batch, tokens, b.pick(WIDTHS), dtype=dtype)
    lead = b.pick((batch, ()))
    return dict(
        features=features,
        positions=b.maybe(lambda: b.floats(*lead, tokens, b.pick((2, 1, 0, 3)), dtype=b.pick(FLOATS))),
        num_centers=1 + b.below(tokens),
        valid=b.maybe(lambda: b.bools(*batch, tokens)),
        center_counts=b.maybe(lambda: b.spoiled(b.ints(*batch, high=tokens), tokens)),
        **built_options(b),
    )


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    # Whole numbers would tie; bfloat16 and float16 hold too few numbers not to.
    x, places, k = s.normal(s.n, 12), torch.rand(s.n, 2, generator=s.generator), max(1, s.n // 6)
    got, want = call(x[s.order], places[s.order], 4.0, 0.5, k), call(x, places, 4.0, 0.5, k)
    labels = want[0][s.order]
    alike = torch.equal(got[0][:, None] == got[0], labels[:, None] == labels)
    alike &= torch.equal(s.order[got[1]].sort().values, want[1])
    return "same answer" if alike else "another answer"


POSITIONS = "positions: expected [N, P], or [B, N, P] with batched features"


GOOD = dict(features=f(2, 9, 4), positions=f(2, 9, 2), d_c=8.0, tau=0.6, num_centers=3, valid=None, center_counts=None)
BAD: list[BadCall] = [
    *CLUSTERING,
    (dict(features=i64(2, 9, 4)), TypeError, f"features: {FLOAT}, got int64"),
    (dict(features=f(9)), ValueError, "features: expected [B, N, D] or [N, D], got [9]"),
    (dict(features=f(2, 0, 4)), ValueError, "features.shape[-2] (tokens): expected at least 1, got 0"),
    (dict(positions=i64(2, 9, 2)), TypeError, f"positions: {FLOAT}, got int64"),
    (dict(positions=f(9)), ValueError, f"{POSITIONS}, got [9]"),
    (dict(positions=f(2, 8, 2)), ValueError, "positions: expected [2, 9, 2], got [2, 8, 2]"),
    (dict(positions=f(1, 9, 2)), ValueError, "positions: expected [2, 9, 2], got [1, 9, 2]"),
    (dict(positions=f(8, 2)), ValueError, "positions: expected [9, 2], got [8, 2]"),
    (dict(features=f(9, 4)), ValueError, f"{POSITIONS}, got [2, 9, 2]"),
    (dict(num_centers=0), ValueError, "num_centers: expected an integer in [1, 9], got 0"),
    (dict(num_centers=10), ValueError, "num_centers: expected an integer in [1, 9], got 10"),
    (dict(valid=f(2, 9)), TypeError, "valid: expected bool, got float32"),
    (dict(valid=boolean(9)), ValueError, "valid: expected [2, 9], got [9]"),
    (dict(center_counts=f(2)), TypeError, "center_counts: expected int64 or int32, got float32"),
    (dict(center_counts=i64(3)), ValueError, "center_counts: expected [2], got [3]"),
]


OP = Op(
    dims={"batch": 1, "tokens": 172, "width": 1024, "clusters": share("tokens", 0.15)},
    make=make,
    flops=cluster_flops,
    shapes=(
        Shape({"tokens": 172, "clusters": 21}, where="576 tokens, retention 1/9"),
        Shape({"tokens": 288, "clusters": 52}, where="576 tokens, retention 1/3"),
        Shape({"tokens": 576, "clusters": 87}, where="576 tokens, none dropped"),
        Shape({"tokens": 864, "clusters": 104}, where="2880 tokens, retention 1/9"),
        Shape({"batch": 8, "tokens": 288, "clusters": 52}, where="eight images"),
        Shape({"tokens": 172, "clusters": 26}, "bfloat16", where="576 tokens, retention 1/9", target_us=12),
        Shape({"tokens": 288, "clusters": 44}, "bfloat16", where="576 tokens, retention 1/3", target_us=12),
        Shape({"tokens": 864, "clusters": 130}, "bfloat16", where="2880 tokens, retention 1/9", target_us=18),
        Shape({"tokens": 4608, "clusters": 692}, "bfloat16", where="32 frames as one sample", target_us=110),
        Shape({"batch": 8, "tokens": 288, "clusters": 44}, "bfloat16", where="eight images", target_us=18),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("positions", "features"),),
    truth=Clustering,
    permute=permute,
    permuted="The same partition and centres. Among equal densities or distances the lower index wins.",
    values=check_values,
    batched=(0, 1, 5, 6),
)
