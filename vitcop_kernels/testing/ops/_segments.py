"""Plans in CSR form: what the ops that merge and move tokens share."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..boundary import Bytes, Call, require, within
from ..draw import Draw
from ..inputs import FLOAT, boolean, f, i64
from ..numbers import TINY, roundoff, unit
from ..op import BadCall, Case
from ..permutation import Shuffle
from ..values import STRUCTURES, rows
from ..verdicts import Verdict, double, mismatch, numbers


def plan(n: int, batch: int = 0) -> list[Tensor]:
    """perm, offsets, anchors, merged of a plan that merges every other pair."""
    size = max(1, 3 * n // 4)
    labels, scores = torch.arange(n) // 4, torch.rand(n)
    csr = torch.ops.vitcop_reference.plan_tokens(labels, scores, n, size)
    return [t.expand(batch, *t.shape).contiguous() if batch else t for t in csr]


def pairs(s: Shuffle) -> tuple[Tensor, ...]:
    """A plan that merges random pairs: perm, offsets, anchors, merged."""
    perm, offsets = torch.randperm(s.n, generator=s.generator), torch.arange(s.n // 2 + 1) * 2
    return perm, offsets, perm[: 2 * (s.n // 2) : 2], torch.ones(s.n // 2, dtype=torch.bool)


def drawn_plan(draw: Draw, batch: tuple[int, ...], n: int) -> list[Tensor]:
    """perm, offsets, anchors, merged: a random partition with empty segments and tokens of none."""
    size = draw.edge(0, n)
    count = batch[0] if batch else 1
    perm = np.stack([draw.rng.permutation(n) for _ in range(count)] or [np.zeros(n, int)])[:count].reshape(count, n)
    used = draw.integers(n - draw.edge(0, n // 3), n, (count, 1))
    cuts = np.sort(draw.integers(0, n, (count, size + 1)), axis=-1)
    cuts = np.minimum(cuts, used) if draw.chance(2) else np.minimum(np.arange(size + 1), n) + 0 * cuts
    length = np.diff(cuts)
    anchors = np.take_along_axis(perm, np.minimum(cuts[:, :-1] + length // 2, n - 1), -1)
    some = draw.integers(0, 3, length.shape) == 0
    anchors = np.where((length == 0) & ~some, -1, anchors)
    merged = (length > 1) | some
    parts = [torch.from_numpy(np.ascontiguousarray(v)) for v in (perm, cuts, anchors, merged)]
    return [draw.laid_out(p if batch else p[0]) for p in parts]


def merging(draw: Draw, backward: bool) -> tuple[torch.dtype, str, int, list[Tensor], dict[str, Any]]:
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens()
    width = draw.size(max(1, min(600, 2**15 // n)))
    batch = draw.batch(n * width)
    plan = drawn_plan(draw, batch, n)
    count = plan[1].shape[-1] - 1 if backward else n
    x = draw.laid_out(rows(draw, (*batch, count, width), dtype, structure), True)
    return dtype, structure, n, [x, *plan], dict(merge=draw.pick(["mean", "anchor_plus_mean"]))


def built_plan(b: Bytes, batch: tuple[int, ...], tokens: int) -> dict[str, Any]:
    count = b.pick((2, 0, 1, 5, 17))
    perm = torch.rand((*batch, tokens), generator=b.generator()).argsort(-1)
    offsets = b.ints(*batch, count + 1, high=tokens + 1).sort(-1).values
    return dict(
        perm=b.spoiled(perm, tokens),
        offsets=b.spoiled(offsets, tokens),
        anchors=b.spoiled(b.ints(*batch, count, high=tokens, low=b.pick((0, -1))), tokens),
        merged=b.bools(*batch, count),
        merge=b.pick(("mean", "anchor_plus_mean")),
    )


def batched(case: Case) -> list[Tensor]:
    """The tensors of a merging op with a batch dimension; without anchors nothing is added to a mean."""
    x, perm, offsets, anchors, merged = case.args
    size = (*offsets.shape[:-1], offsets.shape[-1] - 1)
    anchors = torch.zeros(size, dtype=torch.int64) if anchors is None else anchors
    merged = torch.zeros(size, dtype=torch.bool) if merged is None else merged
    tensors = [x, perm, offsets, anchors, merged]
    return tensors if x.dim() == 3 else [t[None] for t in tensors]


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


NEEDED = 'expected a tensor with merge="anchor_plus_mean", got None'
PLAN_DTYPES: dict[str, torch.dtype] = defaultdict(lambda: torch.int64, merged=torch.bool)
SEGMENTS: list[BadCall] = [
    (dict(x=i64(2, 9, 4)), TypeError, f"x: {FLOAT}, got int64"),
    (dict(x=f(9)), ValueError, "x: expected [B, N, C] or [N, C], got [9]"),
    (dict(x=f(2, 0, 4)), ValueError, "x.shape[-2] (tokens): expected at least 1, got 0"),
    (dict(perm=f(2, 9)), TypeError, "perm: expected int64, got float32"),
    (dict(perm=f(2, 9, dtype=torch.int32)), TypeError, "perm: expected int64, got int32"),
    (dict(perm=i64(2, 8)), ValueError, "perm: expected [2, 9], got [2, 8]"),
    (dict(offsets=f(2, 6)), TypeError, "offsets: expected int64, got float32"),
    (dict(offsets=i64(6)), ValueError, "offsets: expected [B, S+1] or [S+1], as perm, got [6]"),
    (dict(offsets=i64(2, 0)), ValueError, "offsets.shape[-1] (S+1): expected at least 1, got 0"),
    (dict(offsets=i64(3, 6)), ValueError, "offsets: expected [2, 6], got [3, 6]"),
    (dict(merge="sum"), ValueError, 'merge: expected "mean" or "anchor_plus_mean", got "sum"'),
    (dict(merge="anchor_plus_mean"), ValueError, f"anchors: {NEEDED}"),
    (dict(merge="anchor_plus_mean", anchors=i64(2, 5)), ValueError, f"merged: {NEEDED}"),
    (dict(anchors=f(2, 5)), TypeError, "anchors: expected int64, got float32"),
    (dict(anchors=i64(2, 6)), ValueError, "anchors: expected [2, 5], got [2, 6]"),
    (dict(merged=i64(2, 5)), TypeError, "merged: expected bool, got int64"),
    (dict(merged=boolean(5)), ValueError, "merged: expected [2, 5], got [5]"),
]


def check_plan(call: Call, got: list[Tensor], n: int) -> None:
    perm, offsets, anchors = got[:3]
    if perm.numel():
        require((perm.sort(-1).values == torch.arange(n)).all(), call, "no permutation: {}", perm)
    within(call, "offsets", offsets, 0, n + 1)
    require((offsets.diff() >= 0).all(), call, "offsets descend: {}", offsets)
    within(call, "anchors", anchors, -1, n)
