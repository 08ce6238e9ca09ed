"""segment_mean in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import vitcop_kernels

from ..boundary import TOKENS, WIDTHS, Bytes
from ..draw import Draw
from ..inputs import Random, f, i64, normal
from ..op import Arguments, Dims, Drawn, Dynamic, Op, Shape, product, share
from ..permutation import Outcome, Shuffle, outcome
from ._segments import SEGMENTS, SegmentMean, built_plan, merging, pairs, plan


def make(c: Dims, r: Random) -> Arguments:
    perm, offsets, _, _ = r.plan(c["batch"], c["tokens"], c["budget"])
    return (r.normal(c["batch"], c["tokens"], c["width"]), perm, offsets), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 8, 5), *plan(8, 2)[:2]), {}
    yield (r(8, 5), *plan(8)), dict(merge="anchor_plus_mean")


def dynamic(b: int, n: int) -> Dynamic:
    args = torch.randn(b, n, 5), *plan(n, b)[:2]
    return lambda x, perm, offsets: vitcop_kernels.segment_mean(x, perm, offsets), args, ((0, 1),) * 3


def draw(d: Draw) -> Drawn:
    dtype, structure, n, given, options = merging(d, backward=False)
    return dtype, structure, n, tuple(given), options


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, tokens = b.batch(), b.pick(TOKENS)
    given = dict(x=b.floats(*batch, tokens, b.pick(WIDTHS), dtype=dtype), **built_plan(b, batch, tokens))
    if b.byte() % 2:
        given |= dict(anchors=None, merged=None, merge="mean")
    return given


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    perm, offsets, anchors, merged = pairs(s)
    x, options = s.normal(s.n, 9, dtype=dtype), dict(merge="anchor_plus_mean")
    got = call(x[s.order], s.renamed(perm), offsets, s.renamed(anchors), merged, **options)
    return outcome(got, call(x, perm, offsets, anchors, merged, **options), dtype)


GOOD = dict(x=f(2, 9, 4), perm=i64(2, 9), offsets=i64(2, 6), anchors=None, merged=None)
BAD = SEGMENTS


OP = Op(
    dims={"batch": 1, "tokens": 172, "width": 4096, "budget": share("tokens", 0.45)},
    make=make,
    flops=product("batch", "tokens", "width"),
    shapes=(
        Shape({"tokens": 288, "budget": 253}, where="retention 1/3"),
        Shape({"tokens": 288, "budget": 253}, "bfloat16", where="retention 1/3"),
        Shape({"tokens": 864, "width": 5120, "budget": 386}, "bfloat16", where="LLaVA-NeXT-13B, retention 1/9"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("perm", "x"), ("offsets", "x")),
    truth=SegmentMean,
    permute=permute,
    permuted="With `perm` renamed, in its order: the same bits.",
    by_value=("perm", "offsets", "anchors"),
    differentiable=True,
    batched=(0, 1, 2, 3, 4),
)
