"""Accuracies and what is left of the unpruned model's, with intervals.

Questions about one picture are not independent, so pictures are drawn, with all their questions: the same pictures for
both sides of a comparison (a paired bootstrap over clusters).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def spread(found: Interval) -> str:
    return f"{percent(found.value)} [{percent(found.low)}, {percent(found.high)}]"


def signed(found: Interval) -> str:
    """A difference, in bold where its interval leaves 0 out."""
    text = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"**{text}**" if found.excludes_zero else text


@dataclass(frozen=True)
class Answered:
    """Scores and numbers of questions of one setting, `[pictures, tasks]`."""

    scores: Array
    counts: Array

    def accuracy(self) -> Array:
        """[tasks]"""
        return self.scores.sum(0) / self.counts.sum(0)


def interval(statistic: Callable[[Array], Array], pictures: int) -> Interval:
    """Percentile bootstrap of `statistic(weights [R, pictures]) -> [R]`; weights say how often a picture is drawn."""

    def of_draws(drawn: Array, axis: int) -> Array:
        flat = np.moveaxis(drawn, axis, -1).reshape(-1, pictures).astype(np.int64)
        weights = np.stack([np.bincount(row, minlength=pictures) for row in flat]).astype(float)
        return statistic(weights).reshape(np.moveaxis(drawn, axis, -1).shape[:-1])

    numbers = np.arange(pictures)
    found = stats.bootstrap(
        (numbers,),
        of_draws,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    (value,) = statistic(np.ones((1, pictures)))
    return Interval(float(value), float(found.low), float(found.high))


def weighted(answered: Answered, tasks: Sequence[int], weights: Array) -> Array:
    """[R, tasks] accuracies when pictures count as often as `weights [R, pictures]` says."""
    columns = list(tasks)
    return (weights @ answered.scores[:, columns]) / (weights @ answered.counts[:, columns])


def accuracy(answered: Answered, tasks: Sequence[int]) -> Interval:
    """Mean over tasks."""
    return interval(lambda weights: weighted(answered, tasks, weights).mean(1), len(answered.scores))


def retained(answered: Answered, full: Answered, tasks: Sequence[int]) -> Interval:
    """Accuracy as a share of the unpruned model's, mean over tasks: the average of the paper's Table 1."""

    def share(weights: Array) -> Array:
        return (weighted(answered, tasks, weights) / weighted(full, tasks, weights)).mean(1)

    return interval(share, len(full.scores))


def difference(first: Answered, second: Answered, full: Answered, tasks: Sequence[int]) -> Interval:
    """Retained share of `first` minus that of `second`."""

    def gap(weights: Array) -> Array:
        whole = weighted(full, tasks, weights)
        return ((weighted(first, tasks, weights) - weighted(second, tasks, weights)) / whole).mean(1)

    return interval(gap, len(full.scores))
