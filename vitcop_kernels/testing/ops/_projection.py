"""What key_proj and key_proj_norms share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..boundary import TOKENS, WIDTHS, Bytes
from ..draw import Draw
from ..inputs import FLOAT, HALF, f, i64
from ..numbers import TINY, norm_of, roundoff, scores_dtype, unit
from ..op import BadCall, Case
from ..values import STRUCTURES, rows
from ..verdicts import Array, Verdict, double, numbers, worst


def drawn(draw: Draw) -> tuple[torch.dtype, str, int, list[Tensor | None], dict[str, Any]]:
    """Weights and biases are of ordinary size: hidden states below 2^100 keep every key in float32's range."""
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens()
    width = draw.size(max(1, min(300, 2**15 // n)))
    heads = draw.pick([1, 1, 2, 3, 4, 8])
    out = heads * draw.size(max(1, min(64, 2**20 // (n * width * heads))))
    hidden = rows(draw, (*draw.batch(n * width), n, width), dtype, structure, top=8 if dtype == torch.float16 else 100)
    whole = structure == "whole numbers"
    weight = draw.integers(-2, 2, (out, width)) if whole else draw.normal(out, width) / width**0.5
    bias = draw.integers(-3, 3, (out,)) if whole else draw.normal(out)
    weight, bias = (torch.from_numpy(np.asarray(v, np.float64)).to(dtype) for v in (weight, bias))
    given: list[Tensor | None] = [draw.laid_out(hidden, True), draw.laid_out(weight)]
    given.append(draw.laid_out(bias) if draw.chance(2) else None)
    return dtype, structure, n, given, dict(num_heads=heads, heads=draw.pick(["l2", "mean"]))


def built(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    heads, width, channels = b.pick((1, 2, 3, 12)), b.pick((4, 1, 16, 130, 513)), b.pick(WIDTHS)
    return dict(
        hidden=b.floats(*b.batch(), b.pick(TOKENS), channels, dtype=dtype),
        weight=b.floats(heads * width, channels, dtype=dtype),
        bias=b.maybe(lambda: b.floats(heads * width, dtype=dtype)),
        num_heads=heads,
        heads=b.pick(("l2", "mean")),
    )


class Projection:
    """key_proj and key_proj_norms: errors of keys add up in their norm by the triangle inequality."""

    def __init__(self, case: Case) -> None:
        hidden, weight, bias, rms = (*case.args, None)[:4]
        self.norms_only = case.op == "key_proj_norms"
        self.input, self.dtype = hidden.dtype, scores_dtype(hidden.dtype)
        heads, count = case.kwargs["heads"], case.kwargs["num_heads"]
        x, w = double(hidden), double(weight)
        b = np.zeros(len(w)) if bias is None else double(bias)
        with np.errstate(all="ignore"):
            if rms is not None:
                x = x / np.sqrt((x**2).mean(-1, keepdims=True) + case.kwargs["rms_eps"]) * double(rms)
            flat = x @ w.T + b
            # What float32 sums of C products may add up to, times four for the bias and blocking.
            eps = 4 * unit(hidden.dtype) * max(4.0, x.shape[-1] ** 0.5)
            if rms is not None:  # x * rms_weight may be rounded to the dtype before the projection
                eps += 2 * roundoff(hidden.dtype)
            error = eps * (np.abs(x) @ np.abs(w).T + np.abs(b)) + self.floor(w, rms is not None)
            shape = (*flat.shape[:-1], count, flat.shape[-1] // count)
            keys, per_key = (np.moveaxis(v.reshape(shape), -2, -3) for v in (flat, error))
            # Keys are rounded to the dtype, those whose norm is taken too; the fused op need not.
            self.keys, self.keys_bound = keys, per_key + 2.1 * roundoff(hidden.dtype) * (np.abs(keys) + per_key)
            self.keys_bound = self.keys_bound + TINY[hidden.dtype]
            self.want = norm_of(keys, heads)
            self.bound = norm_of(self.keys_bound, heads) + 4 * unit(hidden.dtype) * 2 * self.want + TINY[self.dtype]
            if heads == "mean":
                self.bound = self.bound + unit(hidden.dtype) * count * norm_of(np.abs(keys), heads)
        # A mean over heads may be taken of the weights: then infinities of both signs do not meet as NaN.
        self.open = heads == "mean" and self.norms_only
        # oneDNN's bfloat16 product pads odd widths with zeros on processors without that dtype, and inf * 0 is NaN.
        self.padded = hidden.dtype == torch.bfloat16 and x.shape[-1] % 2 == 1

    def floor(self, w: Array, rms: bool) -> Array:
        """Absolute error of a key from what is subnormal: in products and sums, and in rows rounded after an RMSNorm.

        Matrix products in bfloat16 may count numbers below float32's normal range as zero.
        """
        size, width = np.abs(w).sum(-1), w.shape[-1]
        if self.input == torch.bfloat16:
            return 2.0**-126 * (size + width + 1)
        return TINY[self.dtype] * (width + 1) + (TINY[self.input] * size if rms else 0.0)

    def judge(self, got: Any, implementation: str) -> Verdict:
        if self.norms_only:
            if self.open and got.shape == self.want.shape:
                both = np.isnan(self.want) & np.isinf(double(got))
                got = torch.where(torch.from_numpy(both), torch.nan, got)
            return numbers("norms", self.excused(got, self.want), self.want, self.bound, self.dtype)
        keys = numbers("keys", self.excused(got[0], self.keys), self.keys, self.keys_bound, self.input)
        return worst([keys, numbers("norms", self.excused(got[1], self.want), self.want, self.bound, self.dtype)])

    def excused(self, got: Tensor, want: Array) -> Tensor:
        if not self.padded or got.shape != want.shape:
            return got
        right = torch.from_numpy(want).to(got.dtype)
        return torch.where(got.isnan() & right.isinf(), right, got)


PROJECTION: list[BadCall] = [
    (dict(hidden=i64(2, 5, 6)), TypeError, f"hidden: {FLOAT}, got int64"),
    (dict(hidden=f(6)), ValueError, "hidden: expected [B, N, C] or [N, C], got [6]"),
    (dict(weight=f(8)), ValueError, "weight: expected [H*d, C], got [8]"),
    (dict(weight=f(8, 6, dtype=HALF)), TypeError, "weight: expected the dtype of hidden (float32), got float16"),
    (dict(weight=f(8, 5)), ValueError, "weight: expected [8, 6], got [8, 5]"),
    (dict(num_heads=0), ValueError, "num_heads: expected at least 1, got 0"),
    (dict(num_heads=3), ValueError, "num_heads: expected a divisor of weight.shape[0] (8), got 3"),
    (dict(weight=f(0, 6)), ValueError, "num_heads: expected a divisor of weight.shape[0] (0), got 2"),
    (dict(bias=f(8, dtype=HALF)), TypeError, "bias: expected the dtype of hidden (float32), got float16"),
    (dict(bias=f(7)), ValueError, "bias: expected [8], got [7]"),
    (dict(heads="sum"), ValueError, 'heads: expected "l2" or "mean", got "sum"'),
]
