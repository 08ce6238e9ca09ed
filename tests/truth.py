"""What each op means, in plain Python floats and loops: written from the specification, for tiny inputs only.

Nothing here is shared with the references; where both agree, two independent readings of the specification do.
"""

import math
from collections.abc import Sequence

import numpy as np

INF = math.inf
Vector = Sequence[float]


def float32(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(x))


def best_first(scores: Vector, largest: bool = False) -> list[int]:
    """Indices from best to worst: NaN last, ties (also -0.0 and 0.0) by lower index."""

    def key(i: int) -> tuple[bool, float, int]:
        s = scores[i]
        return (True, 0.0, i) if math.isnan(s) else (False, -s if largest else s, i)

    return sorted(range(len(scores)), key=key)


def select_tokens(scores: Vector, k: int, largest: bool = False) -> list[int]:
    return sorted(best_first(scores, largest)[:k])


def norm(values: list[float]) -> float:
    """Root of the sum of squares, scaled so that neither huge nor tiny values leave the range of a double."""
    scale = max((abs(v) for v in values), default=0.0)
    if scale == 0.0 or not math.isfinite(scale) or any(math.isnan(v) for v in values):
        return math.nan if any(math.isnan(v) for v in values) else scale
    return scale * math.sqrt(math.fsum((v / scale) ** 2 for v in values))


def key_norms(keys: Sequence[Sequence[Vector]], heads: str) -> list[float]:
    """keys[h][i] is token i's key in head h."""
    num_heads, num_tokens = len(keys), len(keys[0])
    out = []
    for i in range(num_tokens):
        if heads == "l2":
            out.append(norm([v for h in range(num_heads) for v in keys[h][i]]))
        else:
            out.append(
                norm([sum(column) / num_heads for column in zip(*(keys[h][i] for h in range(num_heads)), strict=True)])
            )
    return out


def project(
    hidden: Sequence[Vector], weight: Sequence[Vector], bias: Vector | None, num_heads: int
) -> list[list[list[float]]]:
    """keys[h][i]: the linear layer's output, cut into heads."""
    rows = [
        [
            math.fsum(x * w for x, w in zip(token, row, strict=True)) + (bias[o] if bias else 0.0)
            for o, row in enumerate(weight)
        ]
        for token in hidden
    ]
    width = len(weight) // num_heads
    return [[row[h * width : (h + 1) * width] for row in rows] for h in range(num_heads)]


def rms_norm(hidden: Sequence[Vector], weight: Vector, eps: float) -> list[list[float]]:
    out = []
    for token in hidden:
        rstd = 1 / math.sqrt(math.fsum(x * x for x in token) / len(token) + eps)
        out.append([x * rstd * w for x, w in zip(token, weight, strict=True)])
    return out


def attention_saliency(
    query: Sequence[Sequence[Vector]],
    key: Sequence[Sequence[Vector]],
    mask: Sequence[Sequence[bool]] | None,
    scale: float,
) -> list[float]:
    """query[h][m], key[g][j]; consecutive query heads share a key head."""
    num_tokens, share = len(key[0]), len(query) // len(key)
    received: list[list[float]] = [[] for _ in range(num_tokens)]
    for h, rows in enumerate(query):
        for m, q in enumerate(rows):
            open_to = [j for j in range(num_tokens) if mask is None or mask[m][j]]
            dots = {j: scale * math.fsum(a * b for a, b in zip(q, key[h // share][j], strict=True)) for j in open_to}
            top = max(dots.values(), default=0.0)
            weights = {j: math.exp(s - top) for j, s in dots.items()}
            total = math.fsum(weights.values())
            for j, w in weights.items():
                received[j].append(w / total)
    return [math.fsum(parts) for parts in received]


def segment_mean(
    x: Sequence[Vector],
    perm: Sequence[int],
    offsets: Sequence[int],
    anchors: Sequence[int],
    merged: Sequence[bool],
    merge: str,
) -> list[list[float]]:
    width, out = len(x[0]), []
    for s in range(len(offsets) - 1):
        members = perm[offsets[s] : offsets[s + 1]]
        mean = [math.fsum(x[i][c] for i in members) / len(members) if members else 0.0 for c in range(width)]
        if merge == "anchor_plus_mean" and merged[s]:
            mean = [a + m for a, m in zip(x[anchors[s]], mean, strict=True)]
        out.append(mean)
    return out


def plan_tokens(
    labels: Sequence[int], scores: Vector, num_clusters: int, budget: int, quota: str = "exact", fill: bool = True
) -> tuple[list[int], list[int], list[int], list[bool]]:
    n_all = len(labels)
    clusters: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        inside = 0 <= label < num_clusters
        if inside or quota == "released":
            clusters.setdefault(label if inside else -1, []).append(i)
    order = best_first(scores)
    ranked = {c: [i for i in order if i in set(members)] for c, members in clusters.items()}
    sums = {c: sum(scores[i] for i in members) for c, members in clusters.items()}
    sums = {c: INF if math.isnan(s) else s for c, s in sums.items()}
    n = sum(len(members) for members in clusters.values())
    segments: list[tuple[int, list[int], bool]] = []  # anchor, members, merged

    def merge(members: list[int]) -> None:
        if members:
            members = sorted(members)
            segments.append((members[len(members) // 2], members, True))

    if n <= budget:
        segments = [(i, [i], False) for members in clusters.values() for i in members]
    elif len(clusters) > budget:
        by_sum = sorted(clusters, key=lambda c: (sums[c], c))
        for c in by_sum[: budget - 1]:
            merge(clusters[c])
        merge([i for c in by_sum[budget - 1 :] for i in clusters[c]])
    else:
        spare = budget - len(clusters)
        size = {c: len(members) for c, members in clusters.items()}
        if quota == "released":
            weight = {c: np.float32(size[c] - 1) / np.float32(n - len(clusters)) for c in clusters}
            quotas = {c: min(int(np.rint(weight[c] * np.float32(spare))), size[c] - 1) for c in clusters}
            diff = spare - sum(quotas.values())
            for c in sorted(clusters, key=lambda c: (sums[c] if diff > 0 else -sums[c], c)):
                if diff > 0 and quotas[c] < size[c] - 1:
                    quotas[c], diff = quotas[c] + 1, diff - 1
                elif diff < 0 and quotas[c] > 0:
                    quotas[c], diff = quotas[c] - 1, diff + 1
        else:
            quotas = {c: size[c] * spare // n for c in clusters}
            missing = spare - sum(quotas.values())
            queue = sorted(clusters, key=lambda c: (-(size[c] * spare % n), c))
            while quota == "exact" and missing:
                for c in queue:
                    if missing and quotas[c] < size[c] - 1:
                        quotas[c], missing = quotas[c] + 1, missing - 1
        elites = {i for c in clusters for i in ranked[c][: quotas[c]]}
        if quota == "floor" and fill:
            last = {ranked[c][-1] for c in clusters}
            free = [i for i in order if any(i in members for members in clusters.values()) and i not in elites | last]
            elites |= set(free[:missing])
        segments = [(i, [i], False) for i in elites]
        for members in clusters.values():
            merge([i for i in members if i not in elites])

    segments.sort()
    perm = [i for _, members, _ in segments for i in sorted(members)]
    offsets = [0]
    for _, members, _ in segments:
        offsets.append(offsets[-1] + len(members))
    perm += [i for i in range(n_all) if i not in set(perm)]
    empty = min(budget, n_all) - len(segments)
    offsets += [offsets[-1]] * empty
    anchors = [anchor for anchor, _, _ in segments] + [-1] * empty
    return perm, offsets, anchors, [merged for _, _, merged in segments] + [False] * empty
