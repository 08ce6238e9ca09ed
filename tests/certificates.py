"""Certificates for clusterings of real numbers, where two right answers may differ.

A kernel that takes distances in float32 may order two tokens of nearly equal density, or two nearly equal distances,
either way. A certificate recomputes distances and densities in float64 (densities with `math.fsum`), widens them to
intervals by the error the kernel states, and then lets nothing pass that those intervals do not excuse: the chosen
parent is denser and no farther than the true one, the centres have the largest gamma, and labels follow exactly from
parents and centres.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

INF = math.inf
# Of d^2, as csrc/cpu/vic/gram.h states it: a random walk of about 2^-22 |x||y|, and direct differences where d^2 is
# below (|x|^2 + |y|^2) / 32. It measured 2.2e-5 at most, on real tokens; this is the next power of two.
RELATIVE = 2.0**-15
# Of L = log rho, for exp and log in float32 or better.
LOG_ERROR = 2.0**-20
# Unit vectors of metric="cosine" are rounded to float32: absolute in |u - v|.
UNIT_ERROR = 2.0**-22


class Truth:
    """Intervals of d^2 and L for one sample, from its features in float64."""

    def __init__(
        self,
        features: Tensor,  # [N, D]
        positions: Tensor | None,
        d_c: float,
        tau: float,
        valid: Tensor | None = None,
        *,
        semantics: str = "paper",
        metric: str = "l2",
        dist_scale: float = 1.0,
        density: str = "gaussian",
        knn: int = 5,
        include_self: bool | None = None,
    ) -> None:
        n = len(features)
        self.released = semantics == "released"
        self.valid = np.ones(n, bool) if valid is None else valid.numpy()
        self.real = features.isfinite().all(-1).numpy() & self.valid
        x = features.double().masked_fill(~torch.from_numpy(self.real)[:, None], 0.0)
        error = RELATIVE if features.dtype != torch.float64 else 1e-12
        if metric == "cosine":
            x = x / x.abs().amax(-1, keepdim=True).clamp(min=1e-300)
            x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        gap = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        if metric == "cosine":
            unit = UNIT_ERROR if features.dtype != torch.float64 else 1e-14
            low = np.maximum(gap * (1 - error / 2) - unit, 0) ** 4 / 4
            high = (gap * (1 + error / 2) + unit) ** 4 / 4
        else:
            low, high = gap**2 * (1 - error), gap**2 * (1 + error)
        eps = 1e-8 * (1 - np.eye(n)) if self.released else 0.0
        away = ~(self.real[:, None] & self.real[None])
        self.low, self.high = (np.where(away, INF, (d2 + eps) * dist_scale**2) for d2 in (low, high))

        own = self.released if include_self is None else include_self
        others = ~away & (own | ~np.eye(n, dtype=bool))

        def level(d2: np.ndarray, i: int) -> float:
            near = np.sort(d2[i][others[i]])
            if len(near) == 0:
                return -INF
            if density == "knn":
                return -math.fsum(near[:knn]) / len(near[:knn])
            return math.log(math.fsum(np.exp(-(near - near[0]) / d_c**2))) - near[0] / d_c**2

        self.level_low = np.array([level(self.high, i) for i in range(n)]) - LOG_ERROR
        self.level_high = np.array([level(self.low, i) for i in range(n)]) + LOG_ERROR
        if positions is None or tau == INF:
            self.near = np.ones((n, n), bool)
        else:
            p = positions.double().numpy()
            self.near = ((p[:, None] - p[None]) ** 2).sum(-1) <= tau**2 * (1 + 1e-6)

    def surely_denser(self, i: int) -> np.ndarray:
        return self.valid & (self.level_low > self.level_high[i])

    def perhaps_denser(self, j: int, i: int) -> bool:
        return bool(j != i and self.valid[j] and self.level_high[j] >= self.level_low[i])

    def check_parent(self, i: int, parent: int, delta: float) -> None:
        sure = self.surely_denser(i)
        anywhere = self.high[i][sure].min(initial=INF)
        inside = self.high[i][sure & self.near[i]].min(initial=INF)
        if delta < INF:
            assert self.perhaps_denser(parent, i) and self.near[i, parent], (
                f"{i}: parent {parent} is no denser one near by"
            )
            assert self.low[i, parent] <= inside, f"{i}: parent {parent} is farther than the nearest denser token"
            low, high = math.sqrt(self.low[i, parent]), math.sqrt(self.high[i, parent])
            assert low * (1 - 2**-22) - 1e-44 <= delta <= high * (1 + 2**-22) + 1e-44, (
                f"{i}: delta {delta}, [{low}, {high}]"
            )
            return
        assert inside == INF, f"{i}: delta is inf, but a denser token is near"
        if self.released:
            assert parent == 0
        elif parent == -1:
            assert not sure.any(), f"{i}: has no parent, but there is a denser token"
        elif anywhere < INF or self.low[i, parent] < INF:
            assert self.perhaps_denser(parent, i), f"{i}: parent {parent} is no denser"
            assert self.low[i, parent] <= anywhere, f"{i}: parent {parent} is farther than the nearest denser token"

    def gamma(self, i: int, delta: float, root: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Interval of the key by which the largest become centres."""
        if root:
            return (3.0, 0.0), (3.0, 0.0)
        if not self.real[i]:
            return (0.0, 0.0), (0.0, 0.0)
        if delta == INF:  # the release leaves the order among these to its sort
            low, high = (0.0, 0.0) if self.released else (self.level_low[i], self.level_high[i])
            return (2.0, low), (2.0, high)
        log_delta = math.log(delta) if delta > 0 else -INF
        return (1.0, self.level_low[i] + log_delta - RELATIVE), (1.0, self.level_high[i] + log_delta + RELATIVE)


def check_clusters(
    result: Any, features: Tensor, positions: Tensor | None, d_c: float, tau: float, num_centers: int,
    valid: Tensor | None = None, *, assign: str = "parent", **options: Any,
) -> None:  # fmt: skip
    """Assert that `result` is a right answer for one sample, [N, D]."""
    truth = Truth(features, positions, d_c, tau, valid, **options)
    labels, centers, parent, rho, delta = (t.tolist() for t in result)
    tokens = [i for i in range(len(labels)) if truth.valid[i]]

    count = min(num_centers, len(tokens))
    chosen, rest = centers[:count], centers[count:]
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(tokens) and set(rest) <= {-1}, centers
    if not truth.released and tokens:
        assert [i for i in tokens if parent[i] == -1].__len__() == 1, "not one token without a parent"
    for i in range(len(labels)):
        if not truth.valid[i]:
            assert (labels[i], parent[i], rho[i], delta[i]) == (-1, -1, 0.0, INF)
            continue
        low, high = (math.exp(min(x, 80.0)) for x in (truth.level_low[i], truth.level_high[i]))
        assert low * (1 - 2**-22) - 1e-37 <= rho[i] <= high * (1 + 2**-22) + 1e-37, (
            f"{i}: rho {rho[i]}, [{low}, {high}]"
        )
        truth.check_parent(i, parent[i], delta[i])

    gamma = {i: truth.gamma(i, delta[i], parent[i] == -1) for i in tokens}
    weakest = min((gamma[i][1] for i in chosen), default=(INF,))
    for i in set(tokens) - set(chosen):
        assert gamma[i][0] <= weakest, f"{i} is a better centre than one of the chosen"

    for k, i in enumerate(chosen):
        assert labels[i] == k
    for i in set(tokens) - set(chosen):
        if assign == "nearest":
            distances = [truth.high[i, c] for c in chosen]
            assert truth.low[i, chosen[labels[i]]] <= min(distances), f"{i}: not the nearest centre"
        elif not truth.released:
            assert labels[i] == labels[parent[i]] != -1, f"{i}: not the label of its parent"
        elif parent[i] == i:
            assert labels[i] == -1
        else:
            assert labels[i] == labels[parent[i]], f"{i}: not the label of its parent"
