"""Certificates for clusterings: no other answer than the truth passes unless float rounding makes it legitimate.

Distances and densities of float64 are widened to intervals by the error that an implementation states. Then the chosen
parent must be denser and no farther than the true one, the centres must have the largest gamma, and labels must follow
from parents and centres. Exact ties are excused by nothing: duplicates have equal densities to the bit, and the lower
index wins among them and among equal distances between whole numbers.
"""

from dataclasses import dataclass

import numpy as np

from .clusters import INF, Clusters, Sample, by_chain, centers_of, nearest
from .verdicts import Verdict, mismatch


@dataclass(frozen=True)
class Precision:
    distance: float  # relative, of d^2
    level: float  # absolute, of log rho
    unit: float  # absolute, of |u - v| of unit vectors under metric="cosine"
    single: bool  # rho and delta come back in float32


# Of d^2, as csrc/cpu/vic/gram.h states it: a random walk of about 2^-22 |x||y|, and direct differences where d^2 is
# below (|x|^2 + |y|^2) / 32. Of log rho: exp and log in float32 or better. Unit vectors are rounded to float32.
KERNEL = Precision(2.0**-15, 2.0**-20, 2.0**-22, True)
# The reference drops six bits of d^2 and adds N terms in turn.
REFERENCE = Precision(2.0**-44, 2.0**-38, 2.0**-48, True)


def whole_numbers(x: np.ndarray, real: np.ndarray, metric: str, scale: float) -> bool:
    """Whether float32 holds every squared distance exactly."""
    x = x[real]
    if metric != "l2" or x.size == 0 or not np.array_equal(x, np.round(x)) or np.frexp(scale)[0] != 0.5:
        return False
    return bool(x.shape[1] * (x.max() - x.min() + 1) ** 2 < 2**22)


class Certificate:
    def __init__(self, sample: Sample, precision: Precision) -> None:
        self.sample, self.precision = sample, precision
        o = sample.options
        self.exact = whole_numbers(sample.x, sample.real, o.metric, o.dist_scale)
        error = 0.0 if self.exact else precision.distance
        unit = precision.unit if o.metric == "cosine" else 0.0

        def lower(gap2: np.ndarray) -> np.ndarray:
            if not unit:
                return gap2 * (1 - error)
            return np.maximum(np.sqrt(gap2) * (1 - error / 2) - unit, 0.0) ** 2

        def upper(gap2: np.ndarray) -> np.ndarray:
            return (np.sqrt(gap2) * (1 + error / 2) + unit) ** 2 if unit else gap2 * (1 + error)

        self.lower, self.upper = lower, upper
        self.low = sample.log_density(upper) - precision.level
        self.high = sample.log_density(lower) + precision.level
        rounding = 2.0**-22 if precision.single or o.released else 2.0**-45
        with np.errstate(all="ignore"):
            self.rho_low = np.exp(self.low) * (1 - rounding) - 2.0**-148
            self.rho_high = np.exp(self.high) * (1 + rounding) + 2.0**-148
        # What densities are compared by: the released code compares them after rounding.
        self.key_low, self.key_high = (self.rho_low, self.rho_high) if o.released else (self.low, self.high)
        _, self.twin = np.unique(sample.x + 0.0, axis=0, return_inverse=True)
        self.twin = np.where(self.low == -INF, -1, self.twin.reshape(-1))

    def denser(self, rows: slice) -> np.ndarray:
        """[rows, N]: surely denser, by the intervals or as an exact tie."""
        index, mine = np.arange(self.sample.n), np.arange(self.sample.n)[rows, None]
        twins = self.twin == self.twin[rows, None]
        if self.sample.options.released:
            sure = (self.key_low >= self.key_high[rows, None]) | twins
        else:
            sure = np.where(twins, index < mine, self.key_low > self.key_high[rows, None])
        return sure & (index != mine) & self.sample.valid

    def perhaps_denser(self, j: np.ndarray, i: np.ndarray) -> np.ndarray:
        maybe = self.key_high[j] >= self.key_low[i]
        if not self.sample.options.released:
            maybe = np.where(self.twin[j] == self.twin[i], j < i, maybe)
        return maybe & (i != j) & self.sample.valid[j]

    def judge(self, got: Clusters, num_centers: int, count: int | None) -> Verdict:
        for check in (self.check_forms, self.check_densities, self.check_parents):
            if why := check(got):
                return mismatch(why)
        if why := self.check_centers(got, num_centers, count) or self.check_labels(got):
            return mismatch(why)
        return Verdict("certified", self.largest_error(got))

    def largest_error(self, got: Clusters) -> float:
        """Of rho, and of delta where it is the distance of the parent: as a share of the way to the interval's farther
        end: the nearer one may be cut off at 0."""
        s, single = self.sample, self.precision.single

        def share(value: np.ndarray, low: np.ndarray, want: np.ndarray, high: np.ndarray) -> float:
            with np.errstate(all="ignore"):
                part = np.abs(value - want) / np.maximum(high - want, want - low)
                told = np.isfinite(part) & (want > (2.0**-126 if single else 0.0)) & s.valid
            return float(part[told].max(initial=0.0))

        parent = got.parent >= 0
        gap2 = np.where(parent, s.gap2[np.arange(s.n), np.maximum(got.parent, 0)], np.nan)
        slack = 2.0**-22 if single else 2.0**-45
        with np.errstate(all="ignore"):
            low, want, high = (np.sqrt(s.d2(v)) for v in (self.lower(gap2), gap2, self.upper(gap2)))
            near = (got.delta >= low * (1 - slack)) & (got.delta <= high * (1 + slack))
            delta = share(np.where(near, got.delta, np.nan), low * (1 - slack), want, high * (1 + slack))
            return max(delta, share(got.rho, self.rho_low, np.exp(s.log_density()), self.rho_high))

    def check_forms(self, got: Clusters) -> str:
        padding = ~self.sample.valid
        if (got.labels[padding] != -1).any() or (got.parent[padding] != -1).any():
            return "padding has a label or a parent"
        if (got.rho[padding] != 0).any() or (got.delta[padding] != INF).any():
            return "padding has a density or a distance"
        if np.isnan(got.rho).any() or np.isnan(got.delta).any():
            return "rho or delta is NaN"
        if not ((got.parent >= -1) & (got.parent < self.sample.n)).all():
            return "parent out of range"
        return ""

    def check_densities(self, got: Clusters) -> str:
        real = self.sample.valid
        wrong = real & ~((got.rho >= self.rho_low) & (got.rho <= self.rho_high))
        if wrong.any():
            i = int(wrong.argmax())
            return f"rho[{i}] is {got.rho[i]!r}, not in [{self.rho_low[i]!r}, {self.rho_high[i]!r}]"
        order = np.lexsort((got.rho, self.twin))
        a, b = order[:-1], order[1:]
        apart = (self.twin[a] == self.twin[b]) & (got.rho[a] != got.rho[b]) & real[a] & real[b]
        if apart.any():
            k = int(apart.argmax())
            return f"duplicates {a[k]} and {b[k]} have densities {got.rho[a[k]]!r} and {got.rho[b[k]]!r}"
        return ""

    def check_parents(self, got: Clusters) -> str:
        s, o, index = self.sample, self.sample.options, np.arange(self.sample.n)
        parent, at = got.parent, np.maximum(got.parent, 0)
        inside, first, anywhere, other = nearest(s, self.denser)
        with np.errstate(all="ignore"):
            gap2 = np.where(parent >= 0, s.gap2[index, at], INF)
            low, high = s.d2(self.lower(gap2)), s.d2(self.upper(gap2))
            roomy_inside, roomy_anywhere = (
                s.d2(self.upper(self.gap2_at(index, k, v))) for k, v in ((first, inside), (other, anywhere))
            )
            near = np.ones(s.n, bool) if s.near is None else s.near[index, at]
            denser = self.perhaps_denser(at, index)
            slack = 2.0**-22 if self.precision.single else 2.0**-45
            fits = (got.delta >= np.sqrt(low) * (1 - slack) - 1e-44) & (
                got.delta <= np.sqrt(high) * (1 + slack) + 1e-44
            )
        over = got.delta == INF
        fits |= over & (high > 3.4e38**2)
        regular = s.valid & (parent >= 0) & near & denser & fits & (gap2 < INF)
        orphan = s.valid & ~regular
        if (bad := regular & (low > roomy_inside)).any():
            return f"token {bad.argmax()}: its parent is farther than a denser token"
        tied = (s.d2(gap2) == inside) & (first < parent)
        tied &= self.exact | (self.twin[first] == self.twin[at])
        if (bad := regular & tied).any():
            return f"token {bad.argmax()}: a denser token at the same distance has a lower index than its parent"
        if (bad := orphan & (inside < INF)).any():
            i = int(bad.argmax())
            return f"token {i}: parent {parent[i]} and delta {got.delta[i]!r}, but a denser token is near by"
        widest = s.widest()
        low_w, high_w = np.sqrt(widest) * (1 - 2.0**-14), np.sqrt(widest) * (1 + 2.0**-14)
        right = over
        if o.root_delta == "max":
            extra = (self.precision.unit * 8 if o.metric == "cosine" else 0.0) * o.dist_scale + 1e-44
            right = (got.delta >= low_w - extra) & (got.delta <= high_w + extra) | (over & (widest > 3.4e38**2))
        if (bad := orphan & ~right).any():
            i = int(bad.argmax())
            return f"token {i}: parent {parent[i]}, delta {got.delta[i]!r}; no such token is denser and near"
        if o.released:
            return (
                f"token {bad.argmax()}: an orphan whose parent is not 0"
                if (bad := orphan & (parent != 0)).any()
                else ""
            )
        if s.valid.any() and int((s.valid & (parent == -1)).sum()) != 1:
            return "not one token without a parent"
        if (bad := (parent == -1) & s.valid & self.any_denser()).any():
            return f"token {bad.argmax()} has no parent, but there is a denser token"
        wrong = orphan & (parent >= 0) & (~denser | ((anywhere < INF) & ~(low <= roomy_anywhere)))
        return f"token {wrong.argmax()}: its parent is not the nearest denser token anywhere" if wrong.any() else ""

    def gap2_at(self, index: np.ndarray, k: np.ndarray, found: np.ndarray) -> np.ndarray:
        return np.where(found < INF, self.sample.gap2[index, k], INF)

    def any_denser(self) -> np.ndarray:
        return np.concatenate([self.denser(rows).any(1) for rows in self.sample.blocks()])

    def check_centers(self, got: Clusters, num_centers: int, count: int | None) -> str:
        s, o = self.sample, self.sample.options
        k = centers_of(num_centers, count, s.valid)
        chosen, rest = got.centers[:k], got.centers[k:]
        if (rest != -1).any() or (np.diff(chosen) <= 0).any() or (k and not (chosen[0] >= 0 and chosen[-1] < s.n)):
            return f"centres {got.centers.tolist()[:20]} are not {k} ascending indices"
        if not s.valid[chosen].all():
            return "padding is a centre"
        is_center = np.zeros(s.n, bool)
        is_center[chosen] = True
        (tier_low, low), (tier_high, high) = self.gamma(got)
        if k and (others := np.flatnonzero(s.valid & ~is_center)).size:
            weakest = min(zip(tier_high[chosen].tolist(), high[chosen].tolist(), strict=True))
            better = (tier_low[others] > weakest[0]) | ((tier_low[others] == weakest[0]) & (low[others] > weakest[1]))
            if better.any():
                return f"token {others[better.argmax()]} is a better centre than one of the chosen"
        root = s.valid & (got.parent == -1)
        if not o.released:  # duplicates with equal delta tie exactly
            tokens = np.flatnonzero(s.valid & ~root)
            order = tokens[np.lexsort((tokens, got.delta[tokens], self.twin[tokens]))]
            a, b = order[:-1], order[1:]
            same = (self.twin[a] == self.twin[b]) & (got.delta[a] == got.delta[b])
            if (bad := same & ~is_center[a] & is_center[b]).any():
                j = int(bad.argmax())
                return f"{b[j]} is a centre, but {a[j]}, which ties with it, is not"
        return ""

    def gamma(self, got: Clusters) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Lower and upper end of the key of which the largest become centres: a tier, and a number inside it.

        Tiers: 0 near nothing, 1 gamma is 0, 2 by log gamma, 3 gamma is inf, 4 the densest. In 1 and 3 the denser wins.
        """
        s, o, index = self.sample, self.sample.options, np.arange(self.sample.n)
        with np.errstate(all="ignore"):
            gap2 = np.where(got.parent >= 0, s.gap2[index, np.maximum(got.parent, 0)], INF)
            told, least, most = np.log(got.delta), *(0.5 * np.log(s.d2(f(gap2))) for f in (self.lower, self.upper))
            if o.root_delta == "max":  # the largest distance, which float32 need not hold
                told = np.where(got.delta == INF, 0.5 * np.log(s.widest()), told)
            # delta as it was before float32 rounded it, to 0 or to inf even; unless it is not that of the parent.
            near = np.ones(s.n, bool) if s.near is None else s.near[index, np.maximum(got.parent, 0)]
            own = (told >= least - 2.0**-20) & (told <= most + 2.0**-20) | (got.delta == 0)
            own |= (got.delta == INF) & near & (gap2 < INF) & (most > 88.7)
            slack = self.precision.distance + 2.0**-20
            level = (self.low, self.high)
            if o.released:  # of rho as it comes back: below 2^-126 float32 keeps few bits of it, which delta may lift
                level = (np.log(np.maximum(self.rho_low, 0.0)), np.log(self.rho_high))
            low = level[0] + np.where(own, least, told - slack)
            high = level[1] + np.where(own, most, told + slack)
        if o.released:  # a product of float32 numbers, which may vanish; the order among infinities is left to its sort
            low, high = (np.where(np.isnan(v), -INF, v) for v in (low - 2.0**-21, high + 2.0**-21))
            bottom = np.where(s.real, 2, 0)
            tiers = [np.where(s.real & (v > 88.72), 3, bottom) for v in (low - 0.01, high + 0.01)]
            low, high = (np.where(t == 2, np.maximum(v, -85.0), 0.0) for t, v in zip(tiers, (low, high), strict=True))
            return (tiers[0], low), (tiers[1], high)
        tier = np.where((got.delta == INF) & ~own & (o.root_delta != "max"), 3, 2)
        tier = np.where((gap2 == 0) & (got.delta == 0), 1, tier)
        tier = np.where(self.low == -INF, 0, tier)
        tier = np.where((got.parent == -1) & s.valid, 4, tier)
        by_level = (tier == 1) | (tier == 3)
        low, high = np.where(by_level, self.low, low), np.where(by_level, self.high, high)
        low, high = (np.where((tier == 0) | (tier == 4), 0.0, v) for v in (low, high))
        return (tier, low), (tier, high)

    def check_labels(self, got: Clusters) -> str:
        s = self.sample
        chosen = np.zeros(s.n, bool)
        centers = got.centers[got.centers >= 0]
        chosen[centers] = True
        if s.options.assign == "parent":
            wrong = s.valid & (got.labels != by_chain(got.parent, chosen))
            return f"label {wrong.argmax()} is not that of its chain of parents" if wrong.any() else ""
        if (got.labels[centers] != np.arange(len(centers))).any():
            return "a centre has another label than its own"
        others = np.flatnonzero(s.valid & ~chosen)
        if not len(others) or not len(centers):
            return ""
        if not ((got.labels[others] >= 0) & (got.labels[others] < len(centers))).all():
            return "label out of range"
        gap2 = s.gap2[np.ix_(others, centers)]
        mine = gap2[np.arange(len(others)), got.labels[others]]
        d2 = s.d2(gap2)
        least, first = gap2.min(1), d2.argmin(1)
        tied = (s.d2(mine) == d2.min(1)) & (first < got.labels[others])
        tied &= self.exact | (least == INF) | (self.twin[centers[first]] == self.twin[centers[got.labels[others]]])
        with np.errstate(all="ignore"):
            wrong = (s.d2(self.lower(mine)) > s.d2(self.upper(least))) | tied
        return f"label {others[wrong.argmax()]} is not that of the nearest centre" if wrong.any() else ""
