"""plan_tokens in the table."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import TOKENS, Bytes, Call
from ..draw import Draw
from ..inputs import FLOAT, INF, Random, f, i64, normal
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape, share
from ..permutation import Outcome, Shuffle
from ..values import STRUCTURES, best_first, scores
from ..verdicts import Verdict, double, indices, worst
from ._segments import PLAN_DTYPES, check_plan


def make(c: Dims, r: Random) -> Arguments:
    labels = r.labels(c["batch"], c["tokens"], c["clusters"])
    return (labels, r.normal(c["batch"], c["tokens"], dtype=torch.float32), c["clusters"], c["budget"]), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    for quota in ("exact", "floor", "released"):
        yield (torch.randint(0, 4, (2, 12)), r(2, 12), 4, 7), dict(quota=quota)
    yield (torch.randint(0, 4, (12,), dtype=torch.int32), r(12), 4, 40), dict(quota="floor", fill=False)


def drawn_labels(draw: Draw, shape: tuple[int, ...]) -> tuple[Tensor, int, str]:
    n = shape[-1]
    most = min(n + 3, draw.pick([1, 2, 5, 1 + n // 12, 1 + n // 6, 1 + n // 3, 1 + n // 2, n + 3]))
    kind = draw.pick(["uneven"] * 5 + ["some outside"] * 2 + ["even", "one cluster", "each its own", "none inside"])
    if kind == "uneven":
        labels = np.minimum(draw.rng.geometric(min(1.0, 3 / most), shape) - 1, most - 1)
    elif kind == "even":
        labels = np.broadcast_to(np.arange(n) % most, shape)
    elif kind == "one cluster":
        labels = np.full(shape, draw.integer(0, most - 1))
    elif kind == "each its own":
        labels = np.broadcast_to(draw.rng.permutation(n) % most, shape)
    elif kind == "some outside":
        labels = draw.integers(-2, most + 1, shape)
    else:
        labels = np.where(draw.integers(0, 1, shape) == 1, -1, most + 7)
    t = torch.from_numpy(np.array(labels, np.int64))
    return t.to(draw.pick([torch.int64, torch.int32])), most, kind


def dynamic(b: int, n: int) -> Dynamic:
    args = torch.randint(0, 4, (b, n)), torch.randn(b, n)
    return lambda labels, s: vitcop_kernels.plan_tokens(labels, s, 4, labels.shape[-1] // 2), args, ((0, 1), (0, 1))


def draw(d: Draw) -> Drawn:
    dtype, structure, n = d.dtype(), d.pick(STRUCTURES), d.tokens(square=True)
    shape = (*d.batch(n), n)
    labels, most, kind = drawn_labels(d, shape)
    values = scores(d, shape, dtype, structure)
    present = len({int(x) for x in labels.unique().tolist() if 0 <= x < most})
    between = d.integer(max(1, present), max(1, present, n))  # clusters keep some elites and merge the rest
    budget = d.pick([between, between, between, d.edge(1, n + 2), max(1, present - 1), present + 1])
    options = dict(quota=d.pick(["exact", "exact", "floor", "released"]), fill=d.chance(2))
    args = (d.laid_out(labels, True), d.laid_out(values, True), most, budget)
    return dtype, f"{structure}; {kind}", n, args, options


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    shape, clusters = (*b.batch(), b.pick(TOKENS)), b.pick((3, 1, 8, 40))
    labels = b.ints(*shape, high=clusters, dtype=b.pick((torch.int64, torch.int32)))
    return dict(
        labels=b.spoiled(labels, clusters),
        scores=b.floats(*shape, dtype=dtype),
        num_clusters=clusters,
        budget=1 + b.below(shape[-1] + 2),
        quota=b.pick(("exact", "floor", "released")),
        fill=b.pick((True, False)),
    )


SUMS: dict[str, Callable[[np.ndarray], float]] = {
    "exact": lambda v: math.fsum(v.tolist()),
    "in turn": lambda v: float(np.cumsum(v)[-1]),
    "in pairs": lambda v: float(v.sum()),
}


def summed(values: np.ndarray, how: str) -> float:
    """NaN counts as the worst, and so do infinities of both signs."""
    if not np.isfinite(values).all():
        with np.errstate(invalid="ignore"):
            total = float(values.sum())
        return INF if math.isnan(total) else total
    return SUMS[how](values)


class Plan:
    """The plan of one sample, segment by segment."""

    def __init__(
        self, labels: np.ndarray, scores: np.ndarray, num_clusters: int, budget: int, quota: str, fill: bool, how: str
    ) -> None:
        self.n, self.scores, self.quota, self.budget = len(labels), scores, quota, budget
        inside = (labels >= 0) & (labels < num_clusters)
        group = np.where(inside, labels, -1)
        self.order = best_first(scores, largest=False)
        self.rank = np.empty(self.n, np.int64)
        self.rank[self.order] = np.arange(self.n)
        names = sorted(set(group.tolist()) - (set() if quota == "released" else {-1}))
        self.clusters = {c: np.flatnonzero(group == c) for c in names}
        self.sums = {c: summed(scores[m], how) for c, m in self.clusters.items()}
        self.segments: list[tuple[int, np.ndarray, bool]] = []  # anchor, members, merged
        self.total = sum(map(len, self.clusters.values()))
        if self.total <= budget:
            self.keep(np.concatenate([np.zeros(0, np.int64), *self.clusters.values()]))
        elif len(self.clusters) > budget:
            by_sum = sorted(self.clusters, key=lambda c: (self.sums[c], c))
            for c in by_sum[: budget - 1]:
                self.merge(self.clusters[c])
            self.merge(np.concatenate([self.clusters[c] for c in by_sum[budget - 1 :]]))
        else:
            elites = self.elites(self.quotas(), fill and quota == "floor")
            self.keep(np.flatnonzero(elites))
            for members in self.clusters.values():
                self.merge(members[~elites[members]])
        self.segments.sort(key=lambda s: s[0])

    def keep(self, tokens: np.ndarray) -> None:
        self.segments += [(int(i), np.array([i]), False) for i in tokens]

    def merge(self, members: np.ndarray) -> None:
        if len(members):
            members = np.sort(members)
            self.segments.append((int(members[len(members) // 2]), members, True))

    def quotas(self) -> dict[int, int]:
        size = {c: len(m) for c, m in self.clusters.items()}
        spare = self.budget - len(size)
        if self.quota == "released":
            return self.released(size, spare)
        count = {c: size[c] * spare // self.total for c in size}
        missing = spare - sum(count.values())
        queue = sorted(size, key=lambda c: (-(size[c] * spare % self.total), c))
        while self.quota == "exact" and missing:
            for c in queue:
                if missing and count[c] < size[c] - 1:
                    count[c], missing = count[c] + 1, missing - 1
        self.missing = missing
        return count

    def released(self, size: dict[int, int], spare: int) -> dict[int, int]:
        """Weights in float32, rounded half to even, one repair pass over the clusters by summed score."""
        rest = np.float32(self.total - len(size))
        count = {
            c: min(int(np.rint(np.float32(s - 1) / max(rest, np.float32(1)) * np.float32(spare))), s - 1)
            for c, s in size.items()
        }
        off = spare - sum(count.values())
        for c in sorted(size, key=lambda c: (self.sums[c] if off > 0 else -self.sums[c], c)):
            if off > 0 and count[c] < size[c] - 1:
                count[c], off = count[c] + 1, off - 1
            elif off < 0 and count[c] > 0:
                count[c], off = count[c] - 1, off + 1
        return count

    def elites(self, count: dict[int, int], fill: bool) -> np.ndarray:
        chosen, last = np.zeros(self.n, bool), np.zeros(self.n, bool)
        clustered = np.zeros(self.n, bool)
        for c, members in self.clusters.items():
            ranked = members[np.argsort(self.rank[members])]
            chosen[ranked[: count[c]]] = True
            last[ranked[-1]] = clustered[members] = True
        if fill:
            free = self.order[(clustered & ~chosen & ~last)[self.order]]
            chosen[free[: self.missing]] = True
        return chosen

    def csr(self) -> tuple[np.ndarray, ...]:
        size = min(self.budget, self.n)
        used = np.concatenate([np.zeros(0, np.int64), *(m for _, m, _ in self.segments)])
        outside = np.ones(self.n, bool)
        outside[used] = False
        bounds = np.cumsum([0, *(len(m) for _, m, _ in self.segments)])
        empty = size - len(self.segments)
        return (
            np.concatenate([used, np.flatnonzero(outside)]),
            np.concatenate([bounds, np.full(empty, bounds[-1])]),
            np.array([a for a, _, _ in self.segments] + [-1] * empty, np.int64),
            np.array([m for _, _, m in self.segments] + [False] * empty, bool),
        )


class PlanTokens:
    def __init__(self, case: Case) -> None:
        labels, scores, self.num_clusters, self.budget = case.args
        self.shape, self.options = labels.shape[:-1], case.kwargs
        flat = math.prod(self.shape), labels.shape[-1]
        self.labels, self.scores = labels.numpy().astype(np.int64).reshape(flat), double(scores).reshape(flat)

    def plan(self, b: int, how: str) -> Plan:
        options = self.options
        return Plan(
            self.labels[b], self.scores[b], self.num_clusters, self.budget, options["quota"], options["fill"], how
        )

    def judge(self, got: tuple[Tensor, ...], implementation: str) -> Verdict:
        rows = [t.reshape(len(self.labels), *t.shape[len(self.shape) :]) for t in got]
        found = []
        for b in range(len(self.labels)):
            verdicts = {how: self.compare([t[b] for t in rows], self.plan(b, how)) for how in ("exact",)}
            if verdicts["exact"].kind == "mismatch" and self.sums_tie(b):
                verdicts |= {how: self.compare([t[b] for t in rows], self.plan(b, how)) for how in SUMS}
                if any(v.kind == "exact" for v in verdicts.values()):
                    verdicts["exact"] = Verdict("certified", 1.0, "sums of scores tie in float64")
            found.append(verdicts["exact"])
        return worst(found)

    def compare(self, rows: list[Tensor], plan: Plan) -> Verdict:
        named = zip(("perm", "offsets", "anchors", "merged"), rows, plan.csr(), strict=True)
        return worst(indices(name, t, want, PLAN_DTYPES[name]) for name, t, want in named)

    def sums_tie(self, b: int) -> bool:
        """Whether two clusters' exact sums are closer than sums of float64 in any order can tell."""
        plan = self.plan(b, "exact")
        finite = sorted((plan.sums[c], c) for c in plan.clusters if math.isfinite(plan.sums[c]))
        for (a, c), (z, e) in itertools.pairwise(finite):
            size = sum(float(np.abs(self.scores[b][plan.clusters[k]]).sum()) for k in (c, e))
            if z - a <= 2.0**-53 * max(len(plan.clusters[c]), len(plan.clusters[e])) * size:
                return True
        return False


def groups(plan: tuple[Tensor, ...], names: Tensor) -> set[tuple[bool, frozenset[int]]]:
    perm, offsets, _, merged = plan
    parts = [perm[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    return {(bool(m), frozenset(names[p].tolist())) for p, m in zip(parts, merged, strict=True)}


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    labels, scores, budget = torch.arange(s.n) % max(1, s.n // 6), s.distinct(), s.n // 2 + 1
    k = int(labels.max()) + 1
    got, want = call(labels[s.order], scores[s.order], k, budget), call(labels, scores, k, budget)
    return "same answer" if groups(got, s.order) == groups(want, torch.arange(s.n)) else "another answer"


def check_values(call: Call, got: list[Tensor]) -> None:
    check_plan(call, got, call.given["labels"].shape[-1])


GOOD = dict(labels=i64(2, 9), scores=f(2, 9), num_clusters=3, budget=4)
BAD: list[BadCall] = [
    (dict(labels=f(2, 9)), TypeError, "labels: expected int64 or int32, got float32"),
    (dict(labels=i64(1, 2, 9)), ValueError, "labels: expected [B, N] or [N], got [1, 2, 9]"),
    (dict(scores=i64(2, 9)), TypeError, f"scores: {FLOAT}, got int64"),
    (dict(scores=f(2, 8)), ValueError, "scores: expected [2, 9], got [2, 8]"),
    (dict(scores=f(9)), ValueError, "scores: expected [2, 9], got [9]"),
    (dict(num_clusters=0), ValueError, "num_clusters: expected at least 1, got 0"),
    (dict(budget=0), ValueError, "budget: expected at least 1, got 0"),
    (dict(budget=-3), ValueError, "budget: expected at least 1, got -3"),
    (dict(quota="fair"), ValueError, 'quota: expected "exact" or "floor" or "released", got "fair"'),
]


OP = Op(
    dims={"batch": 1, "tokens": 172, "clusters": share("tokens", 0.12), "budget": share("tokens", 0.45)},
    make=make,
    flops=lambda c: 0.0,
    shapes=(
        Shape({"tokens": 288, "clusters": 52, "budget": 253}, where="retention 1/3"),
        Shape({"tokens": 864, "clusters": 104, "budget": 386}, where="2880 tokens, retention 1/9"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("scores", "labels"),),
    truth=PlanTokens,
    permute=permute,
    permuted="The same elites and the same groups. Ties go to the lower index, and a group's anchor is its middle "
    "token by index, so it may be another.",
    values=check_values,
    exact=True,
    batched=(0, 1),
    rank=2,
)
