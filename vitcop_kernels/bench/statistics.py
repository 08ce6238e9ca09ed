"""Median, spread and confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Of samples: median, 20th and 80th percentile, and a confidence interval of the median."""

    median: float
    p20: float
    p80: float
    low: float
    high: float
    count: int


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80, interpolated."""
    p20, p50, p80 = (float(q) for q in np.quantile(np.asarray(samples, dtype=float), (0.2, 0.5, 0.8)))
    return {"p20": p20, "p50": p50, "p80": p80}


def interval(groups: Sequence[Sequence[float]], level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the median of all samples, seeded: the same samples give the same interval.

    `groups`: samples that share something which chance decided once, such as a process. Groups are drawn first, then
    samples within them, so that what differs between groups widens the interval.
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError(f"groups: expected at least one, none of them empty, got {[len(g) for g in groups]}")
    random = np.random.default_rng(seed)
    sets = [np.asarray(group, dtype=float) for group in groups]
    if len(sets) == 1:
        values = sets[0]
        medians = np.median(values[random.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
    else:
        medians = np.empty(RESAMPLES)
        for r in range(RESAMPLES):
            drawn = [sets[g] for g in random.integers(0, len(sets), len(sets))]
            medians[r] = np.median(np.concatenate([s[random.integers(0, len(s), len(s))] for s in drawn]))
    low, high = np.quantile(medians, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def summary(samples: Sequence[float], level: float = LEVEL) -> Summary:
    found, (low, high) = quantiles(samples), interval([samples], level)
    return Summary(found["p50"], found["p20"], found["p80"], low, high, len(samples))


def grouped_summary(groups: Sequence[Sequence[float]], level: float = LEVEL) -> Summary:
    everything = [sample for group in groups for sample in group]
    found, (low, high) = quantiles(everything), interval(groups, level)
    return Summary(found["p50"], found["p20"], found["p80"], low, high, len(everything))
