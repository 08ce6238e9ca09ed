"""The ops that compute numbers, in float64 from the specification, with the bound that each states.

`u` is half an ulp of what an implementation sums in: float32 for the contract's dtypes, float64 for float64. For
float64 the bounds are doubled, since this truth rounds as well.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cases import Case
from .verdicts import Array, Verdict, double, mismatch, numbers, same_bits, worst

TINY = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float64: 2.0**-1074}


def unit(dtype: torch.dtype) -> float:
    return 2.0**-52 if dtype == torch.float64 else 2.0**-24


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def scores_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm_of(keys: Array, heads: str) -> Array:
    """[..., H, N, d] -> [..., N]."""
    if heads == "mean":
        return np.sqrt((keys.mean(-3) ** 2).sum(-1))
    return np.sqrt((keys**2).sum((-3, -1)))


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
            return numbers("norms", got, self.want, self.bound, self.dtype)
        keys = numbers("keys", got[0], self.keys, self.keys_bound, self.input)
        return worst([keys, numbers("norms", got[1], self.want, self.bound, self.dtype)])


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


def batched(case: Case) -> list[Any]:
    """The tensors of a merging op, with a batch dimension."""
    tensors = [t for t in case.args if isinstance(t, Tensor)]
    return tensors if tensors[0].dim() == 3 else [t[None] for t in tensors]


class SegmentMean:
    """One rounding to the dtype; before it a float32 sum, whose error is absolute because terms may cancel."""

    def __init__(self, case: Case) -> None:
        x, perm, offsets, anchors, merged = batched(case)
        self.flat, self.dtype = case.args[0].dim() == 2, x.dtype
        values, order, bounds = double(x), perm.numpy(), offsets.numpy()
        batch, size, width = len(values), bounds.shape[1] - 1, values.shape[-1]
        self.want = np.zeros((batch, size, width))
        top, self.alone = np.zeros((batch, size, width)), np.zeros((batch, size), bool)
        lengths = np.diff(bounds)
        added = (merged.numpy() & (case.kwargs["merge"] == "anchor_plus_mean"))[..., None]
        with np.errstate(all="ignore"):
            for b in range(batch):
                segment = np.repeat(np.arange(size), lengths[b])
                members = values[b][order[b][bounds[b, 0] : bounds[b, -1]]]
                np.add.at(self.want[b], segment, members)
                np.maximum.at(top[b], segment, np.abs(members))
                self.want[b] /= np.maximum(lengths[b], 1)[:, None]
                self.alone[b] = lengths[b] == 1
                one = np.flatnonzero(self.alone[b])
                self.want[b, one] = values[b][order[b][bounds[b, one]]]
                anchor = values[b][np.maximum(anchors[b].numpy(), 0)]
                self.want[b] = np.where(added[b], anchor + self.want[b], self.want[b])
                top[b] = np.maximum(top[b], np.where(added[b], np.abs(anchor), 0.0))
            sums = unit(x.dtype) * (8 + lengths[..., None]) * np.nan_to_num(top, posinf=0.0)
            self.bound = 2.01 * roundoff(x.dtype) * np.abs(self.want) + sums + TINY[x.dtype]
        self.alone &= ~added[..., 0]

    def judge(self, got: Tensor, implementation: str) -> Verdict:
        lifted = got[None] if self.flat else got
        verdict = numbers("y", lifted, self.want, self.bound, self.dtype)
        if verdict.kind == "mismatch":
            return verdict
        # A segment of one is a copy, bit for bit (NaN apart, which has many), and an empty one is 0.
        kept, want = (t[torch.from_numpy(self.alone)] for t in (lifted, torch.from_numpy(self.want).to(self.dtype)))
        signs = torch.signbit(kept) == torch.signbit(want)
        if not bool((kept.isnan() | (signs & (kept == want))).all()):
            return mismatch("y: a segment of one is not its token")
        return verdict


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


class CompactSequence:
    """segment_mean, and companions that are gathered bit for bit (an empty segment takes the first row)."""

    def __init__(self, case: Case) -> None:
        x, companions, *plan = case.args
        self.mean = SegmentMean(Case(case.op, case.seed, (x, *plan), case.kwargs, x.dtype, "", 0, False))
        anchors = plan[2].clamp(min=0)
        self.rows = []
        for t in companions:
            if anchors.dim() == 1:
                self.rows.append(t[anchors])
                continue
            samples = [t[b if t.shape[0] > 1 else 0][anchors[b]] for b in range(len(anchors))]
            self.rows.append(torch.stack(samples) if samples else t.new_zeros((0, anchors.shape[1], *t.shape[2:])))

    def judge(self, got: Any, implementation: str) -> Verdict:
        y, gathered = (got[0], got[1]) if isinstance(got[1], (list, tuple)) else (got[0], got[1:])
        found = [self.mean.judge(y, implementation)]
        for k, (a, b) in enumerate(zip(gathered, self.rows, strict=True)):
            if not same_bits(a, b):
                found.append(mismatch(f"companion {k} is not its anchors' rows"))
        return worst(found)
