"""key_proj in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import vitcop_kernels

from ..draw import Draw
from ..inputs import Random, f, normal
from ..op import Arguments, BadCall, Dims, Drawn, Dynamic, Op, Shape, product
from ..permutation import Outcome, Shuffle, outcome
from ._projection import PROJECTION, Projection, built, drawn


def make(c: Dims, r: Random) -> Arguments:
    hidden = r.normal(c["batch"], c["tokens"], c["width"])
    return (hidden, r.normal(c["width"], c["width"], scale=c["width"] ** -0.5)), {"num_heads": c["heads"]}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 7, 6), r(8, 6)), dict(num_heads=2)
    yield (r(7, 6), r(8, 6), r(8)), dict(num_heads=4, heads="mean")


def dynamic(b: int, n: int) -> Dynamic:
    args = torch.randn(b, n, 6), torch.randn(8, 6)
    return lambda hidden, weight: vitcop_kernels.key_proj(hidden, weight, num_heads=2), args, ((0, 1), ())


def draw(d: Draw) -> Drawn:
    dtype, structure, n, given, options = drawn(d)
    return dtype, structure, n, tuple(given), options


build = built


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    x, weight = s.normal(s.n, 48, dtype=dtype), s.normal(24, 48, dtype=dtype)
    got, (keys, norms) = call(x[s.order], weight, num_heads=3), call(x, weight, num_heads=3)
    return outcome(got, (keys[:, s.order], norms[s.order]), dtype)


GOOD = dict(hidden=f(2, 5, 6), weight=f(8, 6), bias=None, num_heads=2)
BAD: list[BadCall] = [*PROJECTION]


OP = Op(
    dims={"batch": 1, "tokens": 172, "width": 4096, "heads": 32},
    make=make,
    flops=product("batch", "tokens", "width", "width", each=2.0),
    shapes=(
        Shape({"tokens": 288}, where="keys wanted as well"),
        Shape({"tokens": 288}, "bfloat16", where="keys wanted as well"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("weight", "hidden"),),
    truth=Projection,
    permute=permute,
    permuted="Keys and norms go with their tokens, equal to rounding: a matrix product may sum rows in several ways.",
    batched=(0,),
)
