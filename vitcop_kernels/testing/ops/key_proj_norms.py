"""key_proj_norms in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import vitcop_kernels

from ..boundary import Bytes
from ..draw import Draw
from ..inputs import HALF, INF, NAN, Random, f, normal
from ..op import Arguments, BadCall, Dims, Drawn, Dynamic, Op, Shape, product
from ..permutation import Outcome, Shuffle, outcome
from . import key_proj
from ._projection import PROJECTION, Projection, built, drawn


def make(c: Dims, r: Random) -> Arguments:
    args, kwargs = key_proj.make(c, r)
    return (*args, None, r.normal(c["width"], scale=0.1) + 1), kwargs


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 7, 6), r(8, 6)), dict(num_heads=2)
    yield (r(7, 6), r(8, 6), r(8), r(6)), dict(num_heads=4, heads="mean", rms_eps=1e-5)


def dynamic(b: int, n: int) -> Dynamic:
    args = torch.randn(b, n, 6), torch.randn(8, 6)
    return lambda hidden, weight: vitcop_kernels.key_proj_norms(hidden, weight, num_heads=2), args, ((0, 1), ())


def draw(d: Draw) -> Drawn:
    dtype, structure, n, given, options = drawn(d)
    rms = None
    if d.chance(2):
        width = given[0].shape[-1]  # type: ignore[union-attr]
        rms = d.laid_out(torch.from_numpy(d.rng.random(width) + 0.5).to(dtype))
        options["rms_eps"] = d.pick([1e-6, 1e-5, 0.1])
    return dtype, structure, n, (*given, rms), options


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    given = built(b, dtype)
    channels = given["hidden"].shape[-1]
    given["rms_weight"] = b.maybe(lambda: b.floats(channels, dtype=dtype))
    return given | dict(rms_eps=b.pick((1e-6, 0.0, 1.0)))


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    x, weight = s.normal(s.n, 48, dtype=dtype), s.normal(24, 48, dtype=dtype)
    return outcome(call(x[s.order], weight, num_heads=3), call(x, weight, num_heads=3)[s.order], dtype)


GOOD = dict(hidden=f(2, 5, 6), weight=f(8, 6), bias=None, rms_weight=None, num_heads=2)
BAD: list[BadCall] = [
    *PROJECTION,
    (
        dict(rms_weight=f(6, dtype=HALF)),
        TypeError,
        "rms_weight: expected the dtype of hidden (float32), got float16",
    ),
    (dict(rms_weight=f(8)), ValueError, "rms_weight: expected [6], got [8]"),
    (dict(rms_eps=-1e-6), ValueError, "rms_eps: expected a finite number, at least 0, got -1e-06"),
    (dict(rms_eps=INF), ValueError, "rms_eps: expected a finite number, at least 0, got inf"),
    (dict(rms_eps=NAN), ValueError, "rms_eps: expected a finite number, at least 0, got nan"),
]


OP = Op(
    dims={"batch": 1, "tokens": 172, "width": 4096, "heads": 32},
    make=make,
    flops=product("batch", "tokens", "width", "width", each=2.0),
    shapes=(
        Shape({"tokens": 288}, where="keys of the pruned layer"),
        Shape({"tokens": 288}, "bfloat16", where="keys of the pruned layer"),
        Shape({"tokens": 864, "width": 5120, "heads": 40}, "bfloat16", where="LLaVA-NeXT-13B"),
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
    permuted="Norms go with their tokens, equal to rounding: a matrix product may sum rows in several ways.",
    batched=(0,),
)
