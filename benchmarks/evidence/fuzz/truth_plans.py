"""The ops that return indices, from the specification, in float64 and exact integers."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cases import Case
from .verdicts import Verdict, double, indices, mismatch, worst

INF = math.inf
DTYPES: dict[str, torch.dtype] = defaultdict(lambda: torch.int64, merged=torch.bool)


def best_first(values: np.ndarray, largest: bool) -> np.ndarray:
    """Indices from best to worst: NaN last, ties (also of zeros of both signs) by lower index."""
    nan = np.isnan(values)
    key = np.where(nan, 0.0, -values if largest else values)
    return np.lexsort((np.arange(len(values)), key, nan))


class SelectTokens:
    def __init__(self, case: Case) -> None:
        scores, k = case.args
        values = double(scores).reshape(-1, scores.shape[-1])
        best = [np.sort(best_first(row, case.kwargs["largest"])[:k]) for row in values]
        self.want = np.array(best, np.int64).reshape(*scores.shape[:-1], k)

    def judge(self, got: Tensor, implementation: str) -> Verdict:
        return indices("index", got, self.want)


# Sums of scores decide between whole clusters. They are float64 sums, in an order that is not stated: where two exact
# sums are closer than float64 sums can tell, any of these orders may rank them.
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
        self.labels = labels.numpy().astype(np.int64).reshape(-1, labels.shape[-1])
        self.scores = double(scores).reshape(-1, labels.shape[-1])

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
        return worst(indices(name, t, want, DTYPES[name]) for name, t, want in named)

    def sums_tie(self, b: int) -> bool:
        """Whether two clusters' exact sums are closer than sums of float64 in any order can tell."""
        plan = self.plan(b, "exact")
        finite = sorted((plan.sums[c], c) for c in plan.clusters if math.isfinite(plan.sums[c]))
        for (a, c), (z, e) in itertools.pairwise(finite):
            size = sum(float(np.abs(self.scores[b][plan.clusters[k]]).sum()) for k in (c, e))
            if z - a <= 2.0**-53 * max(len(plan.clusters[c]), len(plan.clusters[e])) * size:
                return True
        return False


class ExpandPlan:
    def __init__(self, case: Case) -> None:
        given = [None if t is None else t.numpy() for t in case.args]
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
            indices(name, t[b], want, DTYPES[name])
            for b, sample in enumerate(self.want)
            for name, t, want in zip(names, rows, sample, strict=True)
        )
