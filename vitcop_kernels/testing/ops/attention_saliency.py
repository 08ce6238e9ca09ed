"""attention_saliency in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import TOKENS, WIDTHS, Bytes
from ..draw import Draw
from ..inputs import FLOAT, HALF, INF, NAN, Random, boolean, f, i64, normal
from ..numbers import scores_dtype, unit
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape
from ..permutation import Outcome, Shuffle, outcome
from ..values import BROKEN, PLAIN, STRUCTURES, rows
from ..verdicts import Verdict, double, numbers


def make(c: Dims, r: Random) -> Arguments:
    query = r.normal(c["batch"], c["heads"], c["queries"], c["head_dim"])
    return (query, r.keys(c["batch"], c["heads"], c["tokens"], c["head_dim"])), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 4, 3, 8), r(2, 2, 9, 8)), {}
    yield (r(4, 3, 8), r(4, 9, 8), torch.rand(3, 9) < 0.7), dict(scale=0.5)


def dynamic(b: int, n: int) -> Dynamic:
    args = torch.randn(b, 4, 3, 8), torch.randn(b, 2, n, 8)
    return lambda query, key: vitcop_kernels.attention_saliency(query, key), args, ((0,), (0, 2))


def draw(d: Draw) -> Drawn:
    """Scores stay in float32's range: queries are ordinary where keys are huge."""
    dtype, structure, n = d.dtype(), d.pick(STRUCTURES), d.tokens()
    width = d.size(max(1, min(256, 2**16 // n)))
    shared = d.pick([1, 1, 2, 4])
    heads = shared * d.pick([1, 1, 2, 3])
    queries = d.size(max(1, min(9, 2**18 // (n * width * heads))))
    batch = d.batch(n * width * heads)
    key = rows(d, (*batch, shared, n, width), dtype, structure, top=110)
    like = structure if structure in PLAIN or (structure in BROKEN and d.chance(3)) else "gaussian"
    query = rows(d, (*batch, heads, queries, width), dtype, like) * d.pick([1, 2, 8])
    mask = None
    if d.chance(2):
        mask = torch.from_numpy(d.rng.random((*batch, queries, n)) < d.pick([0.0, 0.1, 0.7, 1.0]))
        mask = d.laid_out(mask)
    scale = d.pick([None, None, None, 0.3, -1.5, 0.0])
    return dtype, structure, n, (d.laid_out(query), d.laid_out(key, True), mask), dict(scale=scale)


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, groups, heads = b.batch(), b.pick((1, 2, 3)), b.pick((1, 2, 8))
    rows, tokens, width = b.pick((1, 2, 5, 33, 0)), b.pick(TOKENS), b.pick(WIDTHS)
    return dict(
        query=b.floats(*batch, heads * groups, rows, width, dtype=dtype),
        key=b.floats(*batch, heads, tokens, width, dtype=dtype),
        mask=b.maybe(lambda: b.bools(*batch, rows, tokens)),
        scale=b.pick((None, 0.1, 0.0, -2.0)),
    )


class AttentionSaliency:
    """A score errs by at most `off`, a weight then by the factor exp(2 * off) of its row; exp and sums add ulps, the
    sum of a row of N weights in 16 lanes N/16 half ulps."""

    def __init__(self, case: Case) -> None:
        query, key, mask = case.args
        q, k, self.dtype = double(query), double(key), scores_dtype(query.dtype)
        d, scale = q.shape[-1], case.kwargs["scale"]
        scale = d**-0.5 if scale is None else scale
        k = np.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)
        with np.errstate(all="ignore"):
            logits = np.matmul(q, np.swapaxes(k, -1, -2)) * scale  # [..., H, M, N]
            long = np.sqrt((q**2).sum(-1))[..., None] * np.sqrt((k**2).sum(-1))[..., None, :]
            allowed = np.ones(logits.shape, bool)
            if mask is not None:
                allowed = np.broadcast_to(mask.numpy()[..., None, :, :], logits.shape)
            logits = np.where(allowed, logits, -np.inf)
            long = np.where(allowed & np.isfinite(long), long, 0.0)
            off = unit(query.dtype) * (d / 16 + 6) * abs(scale) * long.max(-1, keepdims=True, initial=0.0)
            weight = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
            weight = np.where(allowed.any(-1, keepdims=True), weight / weight.sum(-1, keepdims=True), 0.0)
            part = np.minimum(1.0, weight * np.minimum(np.expm1(np.minimum(2 * off, 700.0)), 1e300))
            self.want = weight.sum((-3, -2))
            self.bound = part.sum((-3, -2)) + unit(query.dtype) * (16 + k.shape[-2] / 16) * self.want + 1e-37

    def judge(self, got: Tensor, implementation: str) -> Verdict:
        return numbers("saliency", got, self.want, np.nan_to_num(self.bound, nan=1.0), self.dtype)


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    query, key = s.normal(4, 2, 16, dtype=dtype), s.normal(2, s.n, 16, dtype=dtype)
    return outcome(call(query, key[:, s.order]), call(query, key)[s.order], torch.float32)


DIVISOR = "key.shape[-3] (heads): expected a divisor of the query heads (4)"


GOOD = dict(query=f(2, 4, 3, 8), key=f(2, 2, 5, 8), mask=None)
BAD: list[BadCall] = [
    (dict(query=i64(2, 4, 3, 8)), TypeError, f"query: {FLOAT}, got int64"),
    (dict(query=f(3, 8)), ValueError, "query: expected [B, Hq, M, d] or [Hq, M, d], got [3, 8]"),
    (dict(key=f(2, 2, 5, 8, dtype=HALF)), TypeError, "key: expected the dtype of query (float32), got float16"),
    (dict(key=f(2, 5, 8)), ValueError, "key: expected [B, Hkv, N, d] or [Hkv, N, d], as query, got [2, 5, 8]"),
    (dict(key=f(2, 2, 5, 7)), ValueError, "key: expected [2, 2, 5, 8], got [2, 2, 5, 7]"),
    (dict(key=f(3, 2, 5, 8)), ValueError, "key: expected [2, 2, 5, 8], got [3, 2, 5, 8]"),
    (dict(key=f(2, 3, 5, 8)), ValueError, f"{DIVISOR}, got 3"),
    (dict(key=f(2, 0, 5, 8)), ValueError, f"{DIVISOR}, got 0"),
    (dict(scale=INF), ValueError, "scale: expected a finite number, got inf"),
    (dict(scale=NAN), ValueError, "scale: expected a finite number, got nan"),
    (dict(mask=f(2, 3, 5)), TypeError, "mask: expected bool, got float32"),
    (dict(mask=boolean(2, 5, 3)), ValueError, "mask: expected [2, 3, 5], got [2, 5, 3]"),
    (dict(mask=boolean(3, 5)), ValueError, "mask: expected [2, 3, 5], got [3, 5]"),
]


OP = Op(
    dims={"batch": 1, "heads": 16, "queries": 1, "tokens": 577, "head_dim": 64},
    make=make,
    flops=lambda c: (2.0 * c["head_dim"] + 5.0) * c["batch"] * c["heads"] * c["queries"] * c["tokens"],
    shapes=(
        Shape({"heads": 16, "tokens": 577, "head_dim": 64}, where="[CLS] row of CLIP"),
        Shape({"heads": 32, "tokens": 633, "head_dim": 128}, where="last prompt row"),
        Shape({"heads": 16, "tokens": 577, "head_dim": 64}, "bfloat16", where="[CLS] row of CLIP", target_us=6),
        Shape({"heads": 32, "tokens": 633, "head_dim": 128}, "bfloat16", where="last prompt row"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("key", "query"),),
    truth=AttentionSaliency,
    permute=permute,
    permuted="Saliencies go with their keys, equal to rounding: a softmax sums over tokens in their order.",
    batched=(0, 1, 2),
    rank=4,
)
