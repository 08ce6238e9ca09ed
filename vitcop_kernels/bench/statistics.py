"""Median, spread and confidence intervals. Of torch alone: the GPU report runs where nothing else is installed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
    found = torch.as_tensor(samples, dtype=torch.float64)
    return {f"p{percent}": float(found.quantile(percent / 100)) for percent in (20, 50, 80)}


def interval(groups: Sequence[Sequence[float]], level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the median of all samples, seeded: the same samples give the same interval.

    `groups`: samples that share something which chance decided once, such as a process. Groups are drawn first, then
    samples within them, so that what differs between groups widens the interval. All are of one length.
    """
    lengths = {len(group) for group in groups}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"groups: expected some of one length, none empty, got lengths {[len(g) for g in groups]}")
    random = torch.Generator().manual_seed(seed)
    samples = torch.as_tensor([list(group) for group in groups], dtype=torch.float64)  # [G, n]
    count, length = samples.shape
    group = torch.randint(count, (RESAMPLES, count, 1), generator=random)
    member = torch.randint(length, (RESAMPLES, count, length), generator=random)
    medians = samples[group, member].flatten(1).quantile(0.5, dim=1)
    return float(medians.quantile((1 - level) / 2)), float(medians.quantile((1 + level) / 2))


def summary(samples: Sequence[float], level: float = LEVEL) -> Summary:
    found, (low, high) = quantiles(samples), interval([samples], level)
    return Summary(found["p50"], found["p20"], found["p80"], low, high, len(samples))


def grouped_summary(groups: Sequence[Sequence[float]], level: float = LEVEL) -> Summary:
    everything = [sample for group in groups for sample in group]
    found, (low, high) = quantiles(everything), interval(groups, level)
    return Summary(found["p50"], found["p20"], found["p80"], low, high, len(everything))
