"""select_tokens in the table."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import TOKENS, Bytes, Call, require, within
from ..draw import Draw
from ..inputs import FLOAT, Random, f, i64, normal
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape, product, share
from ..permutation import Outcome, Shuffle, outcome
from ..values import STRUCTURES, best_first, scores
from ..verdicts import Verdict, double, indices


def make(c: Dims, r: Random) -> Arguments:
    return (r.normal(c["batch"], c["tokens"]), c["keep"]), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 9), 4), {}
    yield (r(9), 9), dict(largest=True)


def dynamic(b: int, n: int) -> Dynamic:
    return lambda s: vitcop_kernels.select_tokens(s, s.shape[-1] // 3), (torch.randn(b, n),), ((0, 1),)


def draw(d: Draw) -> Drawn:
    dtype, structure, n = d.dtype(), d.pick(STRUCTURES), d.tokens()
    values = scores(d, (*d.batch(), n), dtype, structure)
    k = d.edge(0, n)
    return dtype, structure, n, (d.laid_out(values, True), k), dict(largest=d.chance(2))


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    tokens = b.pick(TOKENS)
    return dict(scores=b.floats(*b.batch(), tokens, dtype=dtype), k=b.below(tokens + 1), largest=b.pick((False, True)))


class SelectTokens:
    def __init__(self, case: Case) -> None:
        scores, k = case.args
        values = double(scores).reshape(math.prod(scores.shape[:-1]), scores.shape[-1])
        best = [np.sort(best_first(row, case.kwargs["largest"])[:k]) for row in values]
        self.want = np.array(best, np.int64).reshape(*scores.shape[:-1], k)

    def judge(self, got: Tensor, implementation: str) -> Verdict:
        return indices("index", got, self.want)


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    scores, k = s.distinct(), s.n // 3
    return outcome(call(scores[s.order], k), s.renamed(call(scores, k)).sort().values)


def check_values(call: Call, got: list[Tensor]) -> None:
    within(call, "index", got[0], 0, call.given["scores"].shape[-1])
    require((got[0].diff() > 0).all(), call, "not ascending: {}", got[0])


GOOD = dict(scores=f(2, 9), k=3)
BAD: list[BadCall] = [
    (dict(scores=i64(2, 9)), TypeError, f"scores: {FLOAT}, got int64"),
    (dict(scores=f(1, 2, 9)), ValueError, "scores: expected [B, N] or [N], got [1, 2, 9]"),
    (dict(k=10), ValueError, "k: expected an integer in [0, 9], got 10"),
    (dict(k=-1), ValueError, "k: expected an integer in [0, 9], got -1"),
]


OP = Op(
    dims={"batch": 1, "tokens": 576, "keep": share("tokens", 0.3)},
    make=make,
    flops=product("batch", "tokens", each=4.0),
    shapes=(
        Shape({"tokens": 576, "keep": 172}, where="Stage I"),
        Shape({"tokens": 2880, "keep": 864}, where="Stage I of 2880 tokens"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(),
    truth=SelectTokens,
    permute=permute,
    permuted="The same tokens are chosen. Where equal scores meet at the cut, those of lower index.",
    values=check_values,
    exact=True,
    batched=(0,),
    rank=2,
)
