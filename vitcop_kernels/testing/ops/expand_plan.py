"""expand_plan in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import TOKENS, Bytes, Call, within
from ..draw import Draw
from ..inputs import Random, boolean, f, i64
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape, share
from ..permutation import Outcome, Shuffle, outcome
from ..verdicts import Verdict, indices, mismatch, worst
from ._segments import PLAN_DTYPES, check_plan, pairs, plan


def make(c: Dims, r: Random) -> Arguments:
    perm, offsets, anchors, merged = r.plan(c["batch"], c["tokens"], c["budget"])
    slots = (torch.arange(c["tokens"]) + c["text"] // 2).expand(c["batch"], -1).contiguous()
    sizes = {"num_slots": c["tokens"] + c["text"], "out_len": c["text"] + anchors.shape[1]}
    return (slots, anchors, perm, offsets, merged), sizes


def plan_for(n: int, batch: int) -> list[Tensor]:
    """The same in the order of expand_plan: anchors, perm, offsets, merged."""
    perm, offsets, anchors, merged = plan(n, batch)
    return [anchors, perm, offsets, merged]


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    del dtype  # indices only
    slots = torch.arange(8) + 2
    yield (slots.expand(2, 8), *plan_for(8, 2), torch.ones(2, 13, dtype=torch.bool)), dict(num_slots=13, out_len=11)
    yield (slots, torch.tensor([1, 4])), dict(num_slots=12, out_len=6)


def dynamic(b: int, n: int) -> Dynamic:
    def call(slots: Tensor, anchors: Tensor) -> Any:
        total = slots.shape[1]
        return vitcop_kernels.expand_plan(slots, anchors - 2, num_slots=2 * total, out_len=total + anchors.shape[1])

    args = tuple((torch.arange(k) + 2).expand(b, k).contiguous() for k in (n, n // 3))
    return call, args, ((0, 1),) * 2


def draw(d: Draw) -> Drawn:
    """Samples with their own number of visual tokens and segments; shapes as long as the longest."""
    n = d.tokens()
    kind = d.pick(["merging", "merging", "dropping"])
    batch = d.batch(n)
    samples = [drawn_sequence(d, n, kind == "merging") for _ in range(batch[0] if batch else 1)]
    if len({len(s["slots"]) for s in samples}) > 1:
        d.marks.add("samples of different lengths")
    width = max((len(s["slots"]) for s in samples), default=0) + d.pick([0, 0, 2])
    size = max((len(s["anchors"]) for s in samples), default=0) + d.pick([0, 0, 3])
    out_len = d.edge(max((s["kept"] for s in samples), default=0), n)
    fills = dict(slots=(width, -1), anchors=(size, -1), perm=(width, -1), offsets=(size + 1, 0))
    fills |= dict(merged=(size, False), valid=(n, True))
    if kind == "dropping":
        fills = {name: fills[name] for name in ("slots", "anchors", "valid")}
    if d.chance(2):
        del fills["valid"]
    given = {}
    for name, (length, fill) in fills.items():
        ends = [s[name][-1] if name == "offsets" else fill for s in samples]
        parts = [
            np.concatenate([s[name], np.full(length - len(s[name]), end, s[name].dtype)])
            for s, end in zip(samples, ends, strict=True)
        ]
        kept = (
            torch.from_numpy(np.stack(parts))
            if parts
            else torch.zeros(0, length).to(torch.bool if name in ("merged", "valid") else torch.int64)
        )
        given[name] = d.laid_out(kept if batch else kept[0])
    if "valid" not in given and samples:  # what was padding is text now, and needs a column
        out_len = min(n, out_len + max(int((~s["valid"]).sum()) for s in samples))
    names = ("slots", "anchors", "perm", "offsets", "merged", "valid")
    args = tuple(given.get(name) for name in names)
    return torch.int64, kind, n, args, dict(num_slots=n, out_len=out_len)


def drawn_sequence(draw: Draw, n: int, merging: bool) -> dict[str, Any]:
    valid = np.ones(n, bool)
    valid[: draw.edge(0, n // 3)] = False
    free = np.flatnonzero(valid)
    visual = draw.edge(0, len(free))
    slots = draw.rng.permutation(free)[:visual]
    slots = np.sort(slots) if draw.chance(2) else slots
    size = draw.edge(0, visual)
    if not merging:
        anchors = np.sort(draw.rng.permutation(visual)[:size])
        return dict(slots=slots, anchors=anchors, valid=valid, kept=int(valid.sum()) - visual + size)
    perm = draw.rng.permutation(visual)
    cuts = np.sort(draw.integers(0, visual, (size + 1,)))
    length = np.diff(cuts)
    if visual:
        anchors = np.where(length > 0, perm[np.minimum(cuts[:-1] + length // 2, visual - 1)], -1)
    else:
        anchors = np.full(size, -1)
    kept = int(valid.sum()) - visual + int((length > 0).sum())
    return dict(slots=slots, anchors=anchors, perm=perm, offsets=cuts, merged=length > 1, valid=valid, kept=kept)


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    del dtype  # indices only
    batch, tokens, segments, extra = b.batch(), b.pick(TOKENS), b.pick((2, 0, 1, 5)), b.below(6)
    slots = torch.rand((*batch, tokens + extra), generator=b.generator()).argsort(-1)[..., :tokens]
    num_slots = tokens + extra
    perm = torch.rand((*batch, tokens), generator=b.generator()).argsort(-1)
    offsets = b.ints(*batch, segments + 1, high=tokens + 1).sort(-1).values
    if tokens:
        anchors = perm.gather(-1, offsets[..., :-1].clamp(max=tokens - 1))
        anchors = anchors.masked_fill(offsets.diff() == 0, -1)
    else:
        anchors = offsets[..., :-1] - 1
    given: dict[str, Any] = dict(slots=b.spoiled(slots, num_slots), anchors=b.spoiled(anchors, tokens))
    if b.byte() % 3:
        given |= dict(perm=b.spoiled(perm, tokens), offsets=b.spoiled(offsets, tokens))
    given["merged"] = b.maybe(lambda: b.bools(*batch, segments))
    given["valid"] = b.maybe(lambda: b.bools(*batch, num_slots))
    return given | dict(num_slots=num_slots, out_len=min(num_slots, b.pick((num_slots, extra + segments, 0, 3))))


class ExpandPlan:
    def __init__(self, case: Case) -> None:
        given: list[Any] = [None if t is None else t.numpy() for t in case.args]
        self.flat = case.args[0].dim() == 1
        if self.flat:
            given = [None if t is None else t[None] for t in given]
        self.n, self.out_len = case.kwargs["num_slots"], case.kwargs["out_len"]
        self.want = [self.sample([None if t is None else t[b] for t in given]) for b in range(len(given[0]))]

    def sample(self, given: list[Any]) -> list[np.ndarray]:
        slots, anchors, perm, offsets, merged, valid = given
        n, segments = self.n, {}  # slot of the anchor -> slots of the members, whether merged, number in the plan
        for s, anchor in enumerate(anchors.tolist()):
            if anchor >= 0:
                members = [anchor] if perm is None else perm[offsets[s] : offsets[s + 1]].tolist()
                segments[int(slots[anchor])] = (
                    [int(slots[v]) for v in members],
                    bool(merged is not None and merged[s]),
                    s,
                )
        visual = np.zeros(n, bool)
        visual[slots[slots >= 0]] = True
        for p in range(n):
            if not visual[p] and (valid is None or valid[p]):
                segments[p] = [p], False, -1
        lead = self.out_len - len(segments)
        order = sorted(segments)
        column, places = np.full(n, self.out_len), np.full(len(anchors), -1)
        gone = np.concatenate([[0], np.cumsum(visual & ~np.isin(np.arange(n), order))])
        used = [q for p in order for q in segments[p][0]]
        rest = np.ones(n, bool)
        rest[used] = False
        column[order] = lead + np.arange(len(order))
        for k, p in enumerate(order):
            if segments[p][2] >= 0:
                places[segments[p][2]] = lead + k
        return [
            np.array([*used, *np.flatnonzero(rest)], np.int64),
            np.concatenate([np.zeros(lead, np.int64), np.cumsum([0, *(len(segments[p][0]) for p in order)])]),
            np.array([-1] * lead + order, np.int64),
            np.array([False] * lead + [segments[p][1] for p in order], bool),
            column,
            places,
            np.concatenate([np.zeros(lead, np.int64), gone[np.array(order, np.int64)], gone[-1:]]),
        ]

    def judge(self, got: tuple[Tensor, ...], implementation: str) -> Verdict:
        names = ("perm", "offsets", "anchors", "merged", "column", "slots", "removed")
        rows = [t[None] if self.flat else t for t in got]
        if any(len(t) != len(self.want) for t in rows):
            return mismatch("not one plan for each sample")
        return worst(
            indices(name, t[b], want, PLAN_DTYPES[name])
            for b, sample in enumerate(self.want)
            for name, t, want in zip(names, rows, sample, strict=True)
        )


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    """n visual tokens among 2n slots, merged in pairs."""
    n = s.n
    slots = torch.randperm(2 * n, generator=s.generator)[:n].sort().values
    perm, offsets, anchors, _ = pairs(s)
    shape = dict(num_slots=2 * n, out_len=n + n // 2)
    want = call(slots, anchors, perm, offsets, None, None, **shape)
    renamed = (slots[s.order], s.renamed(anchors), s.renamed(perm), offsets)
    return outcome(list(call(*renamed, None, None, **shape)), list(want))


def check_values(call: Call, got: list[Tensor]) -> None:
    check_plan(call, got, call.given["num_slots"])
    within(call, "column", got[4], 0, call.given["out_len"] + 1)
    within(call, "slots", got[5], -1, call.given["out_len"] + 1)
    within(call, "removed", got[6], 0, call.given["slots"].shape[-1] + 1)


GOOD = dict(
    slots=torch.arange(9).repeat(2, 1),
    anchors=i64(2, 5),
    perm=i64(2, 9),
    offsets=i64(2, 6),
    merged=boolean(2, 5),
    valid=None,
    num_slots=12,
    out_len=8,
)
BAD: list[BadCall] = [
    (dict(slots=f(2, 9)), TypeError, "slots: expected int64, got float32"),
    (dict(slots=i64(2, 9, 1)), ValueError, "slots: expected [B, V] or [V], got [2, 9, 1]"),
    (dict(anchors=f(2, 5)), TypeError, "anchors: expected int64, got float32"),
    (dict(anchors=i64(5)), ValueError, "anchors: expected [B, S] or [S], as slots, got [5]"),
    (dict(anchors=i64(3, 5)), ValueError, "anchors: expected [2, 5], got [3, 5]"),
    (dict(num_slots=-1), ValueError, "num_slots: expected at least 0, got -1"),
    (dict(out_len=13), ValueError, "out_len: expected an integer in [0, 12], got 13"),
    (dict(perm=None), ValueError, "perm: expected a tensor with offsets, got None"),
    (dict(offsets=None), ValueError, "offsets: expected a tensor with perm, got None"),
    (dict(perm=i64(2, 8)), ValueError, "perm: expected [2, 9], got [2, 8]"),
    (dict(offsets=i64(2, 5)), ValueError, "offsets: expected [2, 6], got [2, 5]"),
    (dict(merged=i64(2, 5)), TypeError, "merged: expected bool, got int64"),
    (dict(valid=boolean(2, 9)), ValueError, "valid: expected [2, 12], got [2, 9]"),
]


OP = Op(
    dims={"batch": 1, "tokens": 172, "text": 57, "budget": share("tokens", 0.45)},
    make=make,
    flops=lambda c: 0.0,
    shapes=(Shape({"tokens": 288, "budget": 253}, where="Stage II, with 57 tokens of text"),),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("anchors", "slots"), ("perm", "slots")),
    truth=ExpandPlan,
    permute=permute,
    permuted="Visual tokens in another order, `slots` with them and `perm` and `anchors` renamed: the same plan.",
    by_value=("slots", "perm", "offsets", "anchors", "out_len"),
    values=check_values,
    exact=True,
    batched=(0, 1, 2, 3, 4, 5),
    rank=2,
)
