"""Density-peak clustering (Eq. 2-3, Algorithm 2) in plain Python: the specification read once more, for tiny inputs
only.

Densities are sums by `math.fsum`, which do not depend on the order of the terms: exact duplicates tie exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from truth import INF, Vector, float32


@dataclass
class Clusters:
    labels: list[int]
    centers: list[int]
    parent: list[int]
    rho: list[float]
    delta: list[float]


def squared_distance(a: Vector, b: Vector, metric: str, dist_scale: float, released: bool) -> float:
    if not all(map(math.isfinite, [*a, *b])):
        return INF
    if metric == "cosine":
        norms = [math.sqrt(math.fsum(x * x for x in v)) or 1.0 for v in (a, b)]
        gap = math.fsum((x / norms[0] - y / norms[1]) ** 2 for x, y in zip(a, b, strict=True))
        d2 = (gap / 2) ** 2
    else:
        d2 = math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    if released:
        d2 += 1e-8
    return d2 * dist_scale**2


def log_density(others: list[float], d_c: float, density: str, knn: int) -> float:
    finite = sorted(d2 for d2 in others if d2 < INF)
    if not finite:
        return -INF
    if density == "knn":
        return -math.fsum(finite[:knn]) / len(finite[:knn])
    low = finite[0]
    return math.log(math.fsum(math.exp(-(d2 - low) / d_c**2) for d2 in finite)) - low / d_c**2


def vic_cluster(
    features: Sequence[Vector],
    positions: Sequence[Vector] | None,
    d_c: float,
    tau: float,
    num_centers: int,
    valid: Sequence[bool] | None = None,
    center_count: int | None = None,
    *,
    semantics: str = "paper",
    metric: str = "l2",
    dist_scale: float = 1.0,
    density: str = "gaussian",
    knn: int = 5,
    include_self: bool | None = None,
    assign: str = "parent",
    root_delta: str = "inf",
) -> Clusters:
    released = semantics == "released"
    total = len(features)
    valid = [True] * total if valid is None else valid
    tokens = [i for i in range(total) if valid[i]]
    real = [i for i in tokens if all(map(math.isfinite, features[i]))]

    d2 = [[INF] * total for _ in range(total)]
    for i in real:
        for j in real:
            d2[i][j] = 0.0 if i == j else squared_distance(features[i], features[j], metric, dist_scale, released)

    count_self = released if include_self is None else include_self
    level = [-INF] * total  # log rho
    for i in real:
        level[i] = log_density([d2[i][j] for j in tokens if j != i or count_self], d_c, density, knn)
    rho = [float32(math.exp(x)) for x in level]

    def denser(j: int, i: int) -> bool:
        if i == j:
            return False
        if released:
            return rho[j] >= rho[i]
        return (level[j], -j) > (level[i], -i)

    def near(i: int, j: int) -> bool:
        if positions is None or tau == INF:
            return True
        return sum((a - b) ** 2 for a, b in zip(positions[i], positions[j], strict=True)) <= tau**2 * (1 + 1e-6)

    densest = min(tokens, key=lambda i: (-level[i], i)) if tokens else -1
    parent, delta2 = [-1] * total, [INF] * total
    for i in tokens:
        above = [j for j in tokens if denser(j, i)]
        inside = [(d2[i][j], j) for j in above if near(i, j) and d2[i][j] < INF]
        anywhere = [(d2[i][j], j) for j in above if d2[i][j] < INF]
        if inside:
            delta2[i], parent[i] = min(inside)
        elif released:
            parent[i] = 0
        elif i != densest:
            parent[i] = min(anywhere)[1] if anywhere else densest
    if root_delta == "max":
        widest = max((x for row in d2 for x in row if x < INF), default=0.0)
        delta2 = [widest if valid[i] and delta2[i] == INF else delta2[i] for i in range(total)]

    def gamma(i: int) -> tuple[float, ...]:
        """Larger is a better centre (paper)."""
        if i == densest:
            return (2.0,)
        if level[i] == -INF:
            return (0.0, -i)
        log_gamma = INF if delta2[i] == INF else level[i] + 0.5 * math.log(delta2[i]) if delta2[i] > 0 else -INF
        return (1.0, log_gamma, level[i], -i)

    count = min(num_centers, len(tokens))
    if center_count is not None:
        count = min(count, max(1, center_count))
    order = order_as_released(rho, delta2, real, valid) if released else sorted(tokens, key=gamma, reverse=True)
    centers = sorted(order[:count])

    labels = [-1] * total
    for i in tokens:
        if assign == "nearest":
            distance, k = min((d2[i][c], k) for k, c in enumerate(centers))
            labels[i] = centers.index(i) if i in centers else 0 if distance == INF else k
            continue
        seen, at = set(), i
        while at not in centers and at not in seen and at >= 0:
            seen.add(at)
            at = parent[at]
        labels[i] = centers.index(at) if at in centers else -1
    delta = [float32(math.sqrt(x)) for x in delta2]
    return Clusters(labels, centers + [-1] * (num_centers - count), parent, rho, delta)


def order_as_released(rho: list[float], delta2: list[float], real: list[int], valid: Sequence[bool]) -> list[int]:
    """float32 gamma; distinct values only, because the authors' sort leaves the order of ties to torch."""
    gamma = []
    for i, (r, x) in enumerate(zip(rho, delta2, strict=True)):
        g = INF if x == INF else float(np.float32(r) * np.float32(math.sqrt(x)))
        gamma.append(-INF if not valid[i] else -1.0 if i not in real else g)
    return sorted(range(len(gamma)), key=lambda i: (-gamma[i], i))


def centers_are_ambiguous(clusters: Clusters, num_centers: int) -> bool:
    """Whether the released order of centres falls among equal gammas, where only torch's own sort can tell."""
    gamma = [INF if d == INF else float32(r * d) for r, d in zip(clusters.rho, clusters.delta, strict=True)]
    gamma.sort(reverse=True)
    return num_centers < len(gamma) and gamma[num_centers - 1] == gamma[num_centers]
