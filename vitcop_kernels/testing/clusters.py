"""Density-peak clustering (Eq. 2-3, Algorithm 2) of one sample in float64, vectorised to reach 4096 tokens.

Squared distances are sums of squared differences, and densities sums of sorted terms: exact
duplicates tie exactly, and so do equal distances between whole numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

INF = np.inf
BLOCK = 2**17  # entries of a matrix at a time: what the caches hold


@dataclass(frozen=True)
class Options:
    semantics: str = "paper"
    metric: str = "l2"
    dist_scale: float = 1.0
    density: str = "gaussian"
    knn: int = 5
    include_self: bool | None = None
    assign: str = "parent"
    root_delta: str = "inf"

    @property
    def released(self) -> bool:
        return self.semantics == "released"

    @property
    def own(self) -> bool:
        return self.released if self.include_self is None else self.include_self


@dataclass
class Clusters:
    labels: np.ndarray
    centers: np.ndarray
    parent: np.ndarray
    rho: np.ndarray
    delta: np.ndarray


def squared_gaps(x: np.ndarray) -> np.ndarray:
    """|x_i - x_j|^2, [N, N]: sums of squared differences in one order, so that equal ones are equal to the bit."""
    n = len(x)
    rows, out = torch.from_numpy(np.ascontiguousarray(x)), torch.zeros(n, n, dtype=torch.float64)
    if torch.cuda.is_available() and n > 1024:
        rows = rows.cuda()
    for a in range(0, n, 256):  # half of the matrix, and its mirror image
        part = torch.cdist(rows[a : a + 256], rows[a:], compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
        out[a : a + 256, a:], out[a:, a : a + 256] = part, part.T
    return out.numpy()


class Sample:
    """Distances and densities of one sample. `gap2` is what rounding acts on, inf off the real tokens and at i = j."""

    def __init__(
        self,
        features: np.ndarray,
        positions: np.ndarray | None,
        d_c: float,
        tau: float,
        valid: np.ndarray,
        options: Options,
    ) -> None:
        self.n, self.d_c, self.options, self.valid = len(features), d_c, options, valid
        self.real = np.isfinite(features).all(-1) & valid
        self.x = np.where(self.real[:, None], features, 0.0)
        x = self.x
        if options.metric == "cosine":
            x = x / np.maximum(np.abs(x).max(-1, keepdims=True, initial=0.0), 1e-300)
            x = x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 1e-300)
        self.gap2 = squared_gaps(x)
        self.gap2[~self.real], self.gap2[:, ~self.real] = INF, INF
        np.fill_diagonal(self.gap2, INF)
        self.near = None
        if positions is not None and tau != INF:
            with np.errstate(invalid="ignore"):
                self.near = squared_gaps(positions) <= tau * tau * (1 + 1e-6)
        self.step = max(1, BLOCK // max(self.n, 1))
        self._sorted: np.ndarray | None = None
        self._widest: float | None = None

    def d2(self, gap2: Any) -> Any:
        """Of two tokens, from what `gap2` holds; increasing."""
        g = (gap2 / 2) ** 2 if self.options.metric == "cosine" else gap2
        return (g + 1e-8 if self.options.released else g) * self.options.dist_scale**2

    def blocks(self) -> Any:
        return (slice(a, a + self.step) for a in range(0, self.n, self.step))

    def log_density(self, change: Any = lambda gap2: gap2) -> np.ndarray:
        """log rho of every token, with `change` of all gap2; -inf for one that is near nothing."""
        if self._sorted is None:
            self._sorted = np.sort(self.gap2, axis=1)
        o, level = self.options, np.full(self.n, -INF)
        with np.errstate(all="ignore"):
            for rows in self.blocks():
                d2 = self.d2(change(self._sorted[rows]))
                if o.own:
                    d2 = np.concatenate([np.zeros((len(d2), 1)), d2], 1)
                if o.density == "knn":
                    near = d2[:, : o.knn]
                    count = np.isfinite(near).sum(1)
                    level[rows] = np.where(count > 0, -np.where(near < INF, near, 0.0).sum(1) / count, -INF)
                else:
                    low = d2[:, :1]
                    total = np.exp((low - d2) / self.d_c / self.d_c)
                    part = np.log(np.where(d2 < INF, total, 0.0).sum(1)) - low[:, 0] / self.d_c / self.d_c
                    level[rows] = np.where(low[:, 0] < INF, part, -INF)
        return np.where(self.real, level, -INF)

    def widest(self) -> float:
        if self._widest is None:
            most = np.where(self.gap2 < INF, self.gap2, -1.0).max(initial=-1.0)
            self._widest = float(self.d2(most)) if most >= 0 else 0.0
        return self._widest


def nearest(sample: Sample, denser: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(d2, index) of the first nearest token among `denser(rows)`, within the spatial limit and anywhere."""
    n = sample.n
    inside, first = np.full(n, INF), np.zeros(n, np.int64)
    anywhere, other = np.full(n, INF), np.zeros(n, np.int64)
    for rows in sample.blocks():
        d2 = np.where(denser(rows), sample.d2(sample.gap2[rows]), INF)
        other[rows], anywhere[rows] = d2.argmin(1), d2.min(1)
        if sample.near is not None:
            d2 = np.where(sample.near[rows], d2, INF)
        first[rows], inside[rows] = d2.argmin(1), d2.min(1)
    return inside, first, anywhere, other


def cluster(sample: Sample, num_centers: int, count: int | None = None) -> Clusters:
    """The right answer, where float64 can tell."""
    o, n, index, valid = sample.options, sample.n, np.arange(sample.n), sample.valid
    level = sample.log_density()
    with np.errstate(all="ignore"):
        rho = np.exp(level).astype(np.float32) if o.released else np.exp(level)
    order = np.lexsort((index, -level, ~valid))
    place = np.empty(n, np.int64)
    place[order] = index

    def denser(rows: slice) -> np.ndarray:
        mine = index[rows, None]
        if o.released:
            return (rho >= rho[rows, None]) & (index != mine) & valid
        return (place < place[rows, None]) & valid

    delta2, parent, anywhere, other = nearest(sample, denser)
    orphan = delta2 == INF
    densest = order[0]
    if o.released:
        parent = np.where(orphan, 0, parent)
    else:
        parent = np.where(orphan, np.where(anywhere < INF, other, densest), parent)
        parent[densest] = -1
    if o.root_delta == "max":
        delta2 = np.where(orphan, sample.widest(), delta2)

    with np.errstate(all="ignore"):
        if o.released:
            gamma = np.where(delta2 == INF, INF, rho * np.sqrt(delta2).astype(np.float32))
            gamma = np.where(valid, np.where(sample.real, gamma, -1.0), -INF)
            best = np.lexsort((index, -gamma))
        else:
            gamma = np.where(delta2 == INF, INF, level + 0.5 * np.log(delta2))
            gamma = np.where(level == -INF, -INF, gamma)
            gamma[densest] = INF
            root = index == densest
            best = np.lexsort((index, -level, -gamma, ~root, ~valid))
    chosen = np.zeros(n, bool)
    chosen[best[: centers_of(num_centers, count, valid)]] = True
    chosen &= valid
    labels = by_nearest(sample, chosen) if o.assign == "nearest" else by_chain(parent, chosen)
    centers = np.full(num_centers, -1)
    centers[: chosen.sum()] = np.flatnonzero(chosen)
    delta = np.where(valid, np.sqrt(delta2), INF)
    return Clusters(np.where(valid, labels, -1), centers, np.where(valid, parent, -1), np.where(valid, rho, 0.0), delta)


def centers_of(num_centers: int, count: int | None, valid: np.ndarray) -> int:
    wanted = num_centers if count is None else min(max(count, 1), num_centers)
    return min(wanted, int(valid.sum()))


def by_chain(parent: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The label at the end of each chain of parents; -1 where it ends in a cycle without a centre."""
    index = np.arange(len(parent))
    at = np.where(chosen | (parent < 0), index, parent)
    for _ in range(len(parent).bit_length()):
        at = at[at]
    return np.where(chosen, np.cumsum(chosen) - 1, -1)[at]


def by_nearest(sample: Sample, chosen: np.ndarray) -> np.ndarray:
    """The first nearest centre, the first of all where every one is infinitely far; a centre keeps its own."""
    labels, own = np.zeros(sample.n, np.int64), np.cumsum(chosen) - 1
    centers = np.flatnonzero(chosen)
    for rows in sample.blocks():
        if len(centers):
            labels[rows] = sample.d2(sample.gap2[rows][:, centers]).argmin(1)
    return np.where(chosen, own, labels)
