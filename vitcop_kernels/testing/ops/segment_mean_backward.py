"""segment_mean_backward in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import TOKENS, WIDTHS, Bytes
from ..draw import Draw
from ..inputs import FLOAT, Random, f, i64, normal
from ..numbers import TINY, roundoff, unit
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape, product, share
from ..permutation import Outcome, Shuffle, outcome
from ..verdicts import Verdict, double, numbers
from ._segments import SEGMENTS, batched, built_plan, merging, pairs, plan


def make(c: Dims, r: Random) -> Arguments:
    perm, offsets, _, _ = r.plan(c["batch"], c["tokens"], c["budget"])
    return (r.normal(c["batch"], offsets.shape[1] - 1, c["width"]), perm, offsets), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 6, 5), *plan(8, 2)[:2]), {}
    yield (r(6, 5), *plan(8)), dict(merge="anchor_plus_mean")


def dynamic(b: int, n: int) -> Dynamic:
    args = torch.randn(b, max(1, 3 * n // 4), 5), *plan(n, b)[:2]
    return lambda grad, perm, offsets: vitcop_kernels.segment_mean_backward(grad, perm, offsets), args, ((0, 1),) * 3


def draw(d: Draw) -> Drawn:
    dtype, structure, n, given, options = merging(d, backward=True)
    return dtype, structure, n, tuple(given), options


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, tokens = b.batch(), b.pick(TOKENS)
    plan = built_plan(b, batch, tokens)
    return dict(grad=b.floats(*batch, plan["offsets"].shape[-1] - 1, b.pick(WIDTHS), dtype=dtype), **plan)


class SegmentMeanBackward:
    """Shares of a token are summed in float32, then rounded once."""

    def __init__(self, case: Case) -> None:
        grad, perm, offsets, anchors, merged = batched(case)
        self.flat, self.dtype = case.args[0].dim() == 2, grad.dtype
        g, order, bounds = double(grad), perm.numpy(), offsets.numpy()
        batch, n, width = len(g), order.shape[1], g.shape[-1]
        self.want, total, count = np.zeros((batch, n, width)), np.zeros((batch, n, width)), np.zeros((batch, n, 1))
        with np.errstate(all="ignore"):
            for b in range(batch):
                lengths = np.diff(bounds[b])
                segment = np.repeat(np.arange(len(lengths)), lengths)
                parts = [(order[b][bounds[b, 0] : bounds[b, -1]], g[b][segment] / lengths[segment][:, None])]
                if case.kwargs["merge"] == "anchor_plus_mean":
                    add = merged[b].numpy()
                    parts.append((anchors[b].numpy()[add], g[b][add]))
                for token, share in parts:
                    np.add.at(self.want[b], token, share)
                    np.add.at(total[b], token, np.abs(share))
                    np.add.at(count[b], token, 1.0)
            sums = unit(grad.dtype) * (2 + count) * np.nan_to_num(total, posinf=0.0)
            self.bound = 2.01 * roundoff(grad.dtype) * np.abs(self.want) + sums + TINY[grad.dtype]

    def judge(self, got: Tensor, implementation: str) -> Verdict:
        return numbers("grad", got[None] if self.flat else got, self.want, self.bound, self.dtype)


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    perm, offsets, anchors, merged = pairs(s)
    grad, options = s.normal(s.n // 2, 9, dtype=dtype), dict(merge="anchor_plus_mean")
    got = call(grad, s.renamed(perm), offsets, s.renamed(anchors), merged, **options)
    return outcome(got, call(grad, perm, offsets, anchors, merged, **options)[s.order], dtype)


GOOD = dict(grad=f(2, 5, 4), perm=i64(2, 9), offsets=i64(2, 6), anchors=None, merged=None)
BAD: list[BadCall] = [
    (dict(grad=i64(2, 5, 4)), TypeError, f"grad: {FLOAT}, got int64"),
    (dict(grad=f(5)), ValueError, "grad: expected [B, S, C] or [S, C], got [5]"),
    (dict(perm=i64(9)), ValueError, "perm: expected [B, N] or [N], as grad, got [9]"),
    (dict(perm=i64(2, 0)), ValueError, "perm.shape[-1] (tokens): expected at least 1, got 0"),
    (dict(perm=i64(3, 9)), ValueError, "perm: expected [2, 9], got [3, 9]"),
    (dict(offsets=i64(2, 5)), ValueError, "offsets: expected [2, 6], got [2, 5]"),
    *(case for case in SEGMENTS if next(iter(case[0])) in ("merge", "anchors", "merged")),
]


OP = Op(
    dims={"batch": 1, "tokens": 172, "width": 4096, "budget": share("tokens", 0.45)},
    make=make,
    flops=product("batch", "tokens", "width"),
    shapes=(
        Shape({"tokens": 288, "budget": 253}, where="training, retention 1/3"),
        Shape({"tokens": 288, "budget": 253}, "bfloat16", where="training, retention 1/3"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("perm", "grad"),),
    truth=SegmentMeanBackward,
    permute=permute,
    permuted="With `perm` renamed, in its order: gradients go with their tokens, bit for bit.",
    by_value=("perm", "offsets", "anchors"),
    differentiable=True,
    batched=(0, 1, 2, 3, 4),
)
