"""prune_sequence in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import ANY_DTYPE, TOKENS, WIDTHS, Bytes, Call, within
from ..draw import Draw
from ..inputs import FLOAT, Random, boolean, f, i64, normal
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape, product, share
from ..permutation import Outcome, Shuffle, outcome
from ..values import STRUCTURES, rows, scores
from ..verdicts import Verdict, indices, worst
from ._segments import check_plan
from .compact_sequence import CompactSequence
from .expand_plan import ExpandPlan
from .plan_tokens import PlanTokens, drawn_labels
from .select_tokens import SelectTokens


def make(c: Dims, r: Random) -> Arguments:
    """One cluster: no labels, tokens are dropped."""
    batch, visual, n = c["batch"], c["tokens"], c["tokens"] + c["text"]
    companions = [r.normal(1, n, c["head_dim"]), r.normal(1, n, c["head_dim"]), torch.arange(n)[None]]
    slots = (torch.arange(visual) + c["text"] // 2).expand(batch, -1).contiguous()
    values = r.normal(batch, visual, dtype=torch.float32)
    labels = r.labels(batch, visual, c["clusters"]) if c["clusters"] > 1 else None
    args = (r.normal(batch, n, c["width"]), companions, slots, values, c["budget"], labels)
    return args, dict(num_clusters=c["clusters"], out_len=c["text"] + c["budget"])


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r, slots = normal(dtype), torch.arange(8) + 2
    companions = [r(1, 13, 4), torch.arange(26).view(2, 13)]
    valid = torch.arange(13) > torch.tensor([[-1], [1]])
    labels = torch.randint(0, 3, (2, 8))
    yield (r(2, 13, 5), companions, slots.expand(2, 8), r(2, 8), 3, None, valid), dict(out_len=9)
    yield (r(2, 13, 5), companions, slots.expand(2, 8), r(2, 8), 5, labels), dict(num_clusters=3, out_len=10)
    released = dict(num_clusters=3, quota="released", merge="anchor_plus_mean", out_len=10)
    yield (r(12, 5), [r(12, 2, 2)], slots, r(8), 5, labels[0].int()), released
    yield (r(12, 5), [], slots, r(8), 2), dict(largest=True, out_len=6)


def dynamic(b: int, n: int) -> Dynamic:
    def call(x: Tensor, slots: Tensor, values: Tensor) -> Any:
        keep = values.shape[1] // 3
        out_len = x.shape[1] - values.shape[1] + keep
        return vitcop_kernels.prune_sequence(x, [], slots, values, keep, out_len=out_len)

    args = torch.randn(b, 2 * n, 5), (torch.arange(n) + 2).expand(b, n).contiguous(), torch.randn(b, n)
    return call, args, ((0, 1),) * 3


def draw(d: Draw) -> Drawn:
    """Samples with their own padding and slots; `out_len` has room for every segment that may come out."""
    dtype, structure, n = d.dtype(), d.pick(STRUCTURES), d.tokens(square=True)
    width = d.size(max(1, min(600, 2**15 // n)))
    batch = d.batch(n * width)
    count = batch[0] if batch else 1
    padding = [d.edge(0, n // 3) for _ in range(count)] if d.chance(2) else [0] * count
    visual = d.edge(0, n - max(padding, default=0))
    valid, slots = np.ones((count, n), bool), np.zeros((count, visual), np.int64)
    for b, gone in enumerate(padding):
        valid[b, :gone] = False
        slots[b] = gone + d.rng.permutation(n - gone)[:visual]
    slots = np.sort(slots) if d.chance(2) else slots

    def sampled(t: np.ndarray) -> Tensor:
        return d.laid_out(torch.from_numpy(t if batch else t[0]))

    kind, labels, options = "dropping", None, dict(largest=d.chance(2), merge=d.pick(["mean", "anchor_plus_mean"]))
    budget = d.edge(0, visual)
    if d.chance(2):
        drawn, most, kind = drawn_labels(d, (*batch, visual))
        present = len({int(x) for x in drawn.unique().tolist() if 0 <= x < most})
        between = d.integer(max(1, present), max(1, present, visual))
        budget = d.pick([between, between, between, d.edge(1, visual + 2), max(1, present - 1)])
        labels = d.laid_out(drawn, True)
        options |= dict(largest=False, num_clusters=most, quota=d.pick(["exact", "exact", "floor", "released"]))
    companions = []
    for _ in range(d.pick([0, 1, 3])):
        lead = d.pick([batch, (1,)]) if batch not in ((), (0,)) else batch
        beside = torch.from_numpy(d.integers(-9, 9, (*lead, n, *d.pick([(), (3,), (2, 3), (0,)]))))
        companions.append(d.laid_out(beside.to(d.pick([dtype, torch.float32, torch.int64, torch.int32, torch.bool]))))
    least = n - visual - min(padding, default=0) + min(budget, visual)
    options["out_len"] = d.edge(least, n)
    x = d.laid_out(rows(d, (*batch, n, width), dtype, structure), True)
    values = d.laid_out(scores(d, (*batch, visual), d.pick([dtype, torch.float32]), structure), True)
    args = (x, companions, sampled(slots), values, budget, labels, sampled(valid) if any(padding) else None)
    return dtype, f"{structure}; {kind}", n, args, options


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, visual, extra = b.batch(), b.pick(TOKENS), b.below(6)
    n, clusters = visual + extra, b.pick((3, 1, 8))
    slots = torch.rand((*batch, n), generator=b.generator()).argsort(-1)[..., :visual]
    labels = b.maybe(lambda: b.spoiled(b.ints(*batch, visual, high=clusters), clusters))
    budget = b.below(visual + 1) if labels is None else 1 + b.below(visual + 2)
    companions = []
    for _ in range(b.below(4)):
        lead, tail = b.pick((batch, (1,) * len(batch))), b.pick(((), (3,), (2, 2), (0,)))
        companions.append(b.laid_out(b.ints(*lead, n, *tail, high=100).to(b.pick(ANY_DTYPE))))
    return dict(
        x=b.floats(*batch, n, b.pick(WIDTHS), dtype=dtype),
        companions=companions,
        slots=b.spoiled(slots, n),
        scores=b.floats(*batch, visual, dtype=b.pick((dtype, torch.float32))),
        budget=budget,
        labels=labels,
        valid=b.maybe(lambda: b.bools(*batch, n)),
        num_clusters=clusters,
        quota=b.pick(("exact", "floor", "released")),
        merge=b.pick(("mean", "anchor_plus_mean")),
        largest=labels is None and b.pick((False, True)),
        out_len=min(n, b.pick((n, extra + budget, 0, 3))),
    )


class PruneSequence:
    """The truths of the ops that it is composed of, each given what the one before has let pass."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.x, self.companions, self.slots, self.scores, self.budget, self.labels, self.valid = (
            *case.args,
            None,
            None,
        )[:7]

    def judge(self, got: Any, implementation: str) -> Verdict:
        y, companions, source, slots, anchors, perm, offsets, merged = got
        options, plan = self.case.kwargs, (perm, offsets, merged)
        if self.labels is None:
            whether = dict(largest=options.get("largest", False))
            chosen = Case(self.case.op, (self.scores, self.budget), whether, self.scores.dtype)
            found = [SelectTokens(chosen).judge(anchors, implementation)]
            empty = np.zeros((*self.slots.shape[:-1], 0), np.int64)
            found += [
                indices("plan", t, empty, k) for t, k in zip(plan, (torch.int64,) * 2 + (torch.bool,), strict=True)
            ]
            plan = (None, None, None)
        else:
            args = (self.labels, self.scores, options["num_clusters"], self.budget)
            how = dict(quota=options.get("quota", "exact"), fill=True)
            found = [
                PlanTokens(Case(self.case.op, args, how, self.scores.dtype)).judge(
                    (perm, offsets, anchors, merged), implementation
                )
            ]
        if worst(found).kind == "mismatch":
            return worst(found)
        n, out_len, lead = self.x.shape[-2], options["out_len"], self.slots.shape[:-1]
        sizes = dict(num_slots=n, out_len=out_len)
        expanded = ExpandPlan(Case(self.case.op, (self.slots, anchors, *plan, self.valid), sizes, torch.int64)).want

        def whole(k: int, length: int) -> np.ndarray:
            parts = [sample[k] for sample in expanded]
            return np.stack(parts).reshape(*lead, length) if parts else np.zeros((*lead, length), np.int64)

        found.append(indices("source", source, whole(2, out_len)))
        found.append(indices("slots", slots, whole(5, anchors.shape[-1])))
        parts = [torch.from_numpy(whole(k, length)) for k, length in enumerate((n, out_len + 1, out_len, out_len))]
        args = (self.x, self.companions, *parts[:3], parts[3].bool())
        how = dict(merge=options.get("merge", "mean"))
        found.append(
            CompactSequence(Case(self.case.op, args, how, self.x.dtype)).judge((y, companions), implementation)
        )
        return worst(found)


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    """n visual tokens among 2n slots, a third of them kept."""
    n = s.n
    slots = torch.randperm(2 * n, generator=s.generator)[:n].sort().values
    x, beside, values = s.normal(2 * n, 9, dtype=dtype), s.normal(2 * n, 3, dtype=dtype), s.distinct()
    shape = dict(out_len=n + n // 3)
    want = call(x, [beside], slots, values, n // 3, None, None, **shape)
    got = call(x, [beside], slots[s.order], values[s.order], n // 3, None, None, **shape)
    return outcome([*got[:3], got[3].sort().values], [*want[:3], want[3]], dtype)


def check_values(call: Call, got: list[Tensor]) -> None:
    given = call.given
    source, slots, anchors, perm, offsets, _ = got[1 + len(given["companions"]) :]
    within(call, "source", source, -1, given["x"].shape[-2])
    within(call, "slots", slots, -1, given["out_len"] + 1)  # n': no room, where nothing looks at the values
    within(call, "anchors", anchors, -1, given["slots"].shape[-1])
    if given["labels"] is not None:
        check_plan(call, [perm, offsets, anchors], given["slots"].shape[-1])


GOOD = dict(
    x=f(2, 12, 4),
    companions=[f(1, 12, 4), i64(2, 12)],
    slots=torch.arange(9).repeat(2, 1),
    scores=f(2, 9),
    budget=3,
    labels=None,
    valid=None,
    num_clusters=2,
    out_len=8,
)
LABELS = i64(2, 9)
BAD: list[BadCall] = [
    (dict(x=i64(2, 12, 4)), TypeError, f"x: {FLOAT}, got int64"),
    (dict(x=f(12)), ValueError, "x: expected [B, n, C] or [n, C], got [12]"),
    (dict(x=f(2, 0, 4)), ValueError, "x.shape[-2] (tokens): expected at least 1, got 0"),
    (dict(companions=[f(2, 11)]), ValueError, "companions[0]: expected [2 or 1, 12, ...], got [2, 11]"),
    (
        dict(companions=[f(2, 12, dtype=torch.complex64)]),
        TypeError,
        "companions[0]: expected a floating dtype, int64, int32 or bool, got complex64",
    ),
    (dict(slots=f(2, 9)), TypeError, "slots: expected int64, got float32"),
    (dict(slots=i64(9)), ValueError, "slots: expected [B, V] or [V], as x, got [9]"),
    (dict(slots=i64(3, 9)), ValueError, "slots: expected [2, 9], got [3, 9]"),
    (dict(scores=i64(2, 9)), TypeError, f"scores: {FLOAT}, got int64"),
    (dict(scores=f(2, 8)), ValueError, "scores: expected [2, 9], got [2, 8]"),
    (dict(quota="fair"), ValueError, 'quota: expected "exact" or "floor" or "released", got "fair"'),
    (dict(merge="sum"), ValueError, 'merge: expected "mean" or "anchor_plus_mean", got "sum"'),
    (dict(budget=10), ValueError, "budget: expected an integer in [0, 9], got 10"),
    (dict(budget=-1), ValueError, "budget: expected an integer in [0, 9], got -1"),
    (dict(labels=f(2, 9)), TypeError, "labels: expected int64 or int32, got float32"),
    (dict(labels=i64(2, 8)), ValueError, "labels: expected [2, 9], got [2, 8]"),
    (dict(labels=LABELS, num_clusters=0), ValueError, "num_clusters: expected at least 1, got 0"),
    (dict(labels=LABELS, budget=0), ValueError, "budget: expected at least 1, got 0"),
    (dict(labels=LABELS, largest=True), ValueError, "largest: expected False with labels, got True"),
    (dict(valid=i64(2, 12)), TypeError, "valid: expected bool, got int64"),
    (dict(valid=boolean(2, 9)), ValueError, "valid: expected [2, 12], got [2, 9]"),
    (dict(out_len=13), ValueError, "out_len: expected an integer in [0, 12], got 13"),
]


OP = Op(
    dims={
        "batch": 1,
        "tokens": 172,
        "text": 57,
        "clusters": 1,
        "budget": share("tokens", 0.45),
        "width": 4096,
        "head_dim": 128,
    },
    make=make,
    flops=product("batch", "tokens", "width"),
    shapes=(
        Shape({"tokens": 288, "clusters": 52, "budget": 253}, where="Stage II"),
        Shape({"tokens": 288, "clusters": 52, "budget": 253}, "bfloat16", where="Stage II"),
        Shape({"tokens": 253, "budget": 51}, "bfloat16", where="Stage III"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("slots", "x"), ("scores", "x")),
    truth=PruneSequence,
    permute=permute,
    permuted="Without labels, visual tokens in another order, `slots` and `scores` with them: the same bits. "
    "Ties go to the lower index; with labels see `plan_tokens`.",
    by_value=("slots", "out_len"),
    values=check_values,
    batched=(0, 1, 2, 3, 5, 6),
)
