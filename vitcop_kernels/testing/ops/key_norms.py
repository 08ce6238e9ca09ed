"""key_norms in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import TOKENS, WIDTHS, Bytes
from ..draw import Draw
from ..inputs import FLOAT, Random, f, i64, normal
from ..numbers import TINY, norm_of, scores_dtype, unit
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape, product
from ..permutation import Outcome, Shuffle, outcome
from ..values import STRUCTURES, rows
from ..verdicts import Verdict, double, numbers


def make(c: Dims, r: Random) -> Arguments:
    return (r.keys(c["batch"], c["heads"], c["tokens"], c["head_dim"]),), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 3, 7, 4),), {}
    yield (r(2, 7, 3, 4).transpose(1, 2),), dict(heads="mean")
    yield (r(3, 7, 4),), {}


def dynamic(b: int, n: int) -> Dynamic:
    return lambda keys: vitcop_kernels.key_norms(keys), (torch.randn(b, 3, n, 4),), ((0, 2),)


def draw(d: Draw) -> Drawn:
    dtype, structure, n = d.dtype(), d.pick(STRUCTURES), d.tokens()
    heads, width = d.size(16), d.size(max(1, min(200, 2**15 // n)))
    heads = max(1, min(heads, 2**17 // (n * width)))
    keys = rows(d, (*d.batch(n * width * heads), heads, n, width), dtype, structure)
    return dtype, structure, n, (d.laid_out(keys, True),), dict(heads=d.pick(["l2", "mean"]))


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    shape = (*b.batch(), b.pick((1, 2, 3, 8)), b.pick(TOKENS), b.pick(WIDTHS))
    return dict(keys=b.floats(*shape, dtype=dtype), heads=b.pick(("l2", "mean")))


class KeyNorms:
    """A float32 sum of H*d squares in at least 16 partial sums; a mean over heads errs like a sum of H terms."""

    def __init__(self, case: Case) -> None:
        (keys,), heads = case.args, case.kwargs["heads"]
        x, self.dtype = double(keys), scores_dtype(keys.dtype)
        h, _, d = x.shape[-3:]
        with np.errstate(all="ignore"):
            self.want = norm_of(x, heads)
            self.bound = unit(keys.dtype) * (h * d / 16 + 8) * self.want + TINY[self.dtype]
            if heads == "mean":
                self.bound = self.bound + unit(keys.dtype) * h * norm_of(np.abs(x), heads)

    def judge(self, got: Tensor, implementation: str) -> Verdict:
        return numbers("norms", got, self.want, self.bound, self.dtype)


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    keys = s.normal(3, s.n, 20, dtype=dtype)
    return outcome(call(keys[:, s.order]), call(keys)[s.order], torch.float32)


GOOD = dict(keys=f(2, 3, 5, 4))
BAD: list[BadCall] = [
    (dict(keys=i64(2, 3, 5, 4)), TypeError, f"keys: {FLOAT}, got int64"),
    (dict(keys=f(5, 4)), ValueError, "keys: expected [B, H, N, d] or [H, N, d], got [5, 4]"),
    (dict(keys=f(1, 1, 1, 1, 1)), ValueError, "keys: expected [B, H, N, d] or [H, N, d], got [1, 1, 1, 1, 1]"),
    (dict(keys=f(2, 0, 5, 4)), ValueError, "keys.shape[-3] (heads): expected at least 1, got 0"),
    (dict(heads="max"), ValueError, 'heads: expected "l2" or "mean", got "max"'),
]


OP = Op(
    dims={"batch": 1, "heads": 32, "tokens": 172, "head_dim": 128},
    make=make,
    flops=product("batch", "heads", "tokens", "head_dim", each=2.0),
    shapes=(
        Shape({"tokens": 288}, where="keys from the cache"),
        Shape({"tokens": 288}, "bfloat16", where="keys from the cache"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(),
    truth=KeyNorms,
    permute=permute,
    permuted="Norms go with their tokens, bit for bit.",
    batched=(0,),
    rank=4,
)
