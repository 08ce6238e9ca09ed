"""Times of several ways to do the same, taken in turn.

A machine that slows down for a second slows all ways down, and the ratio of two ways within a round is as it was. The
order turns over from round to round: what comes first in one comes last in the next.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from .statistics import Summary, summary

Way = Callable[[], Any]
Samples = dict[str, dict[int, float]]  # name -> round -> seconds a call
WARM_BELOW = 0.05  # a call shorter than this is made once, untimed, before its turn: the others' data fill the caches
SLOW, LEAST = 0.25, 5  # a way whose turn takes longer comes in `LEAST` rounds, spread evenly


class Clock(Protocol):
    def seconds(self, way: Way, count: int) -> float:
        """Seconds a call, of `count` calls one after the other."""


class CpuClock:
    """Wall time; inputs are as warm as the caches keep them."""

    def seconds(self, way: Way, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            way()
        return (time.perf_counter() - start) / count


class CudaClock:
    """Events around each call, behind a write of twice the L2, so that inputs come from device memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        l2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
        self._scratch = torch.empty(max(2 * l2, 64 << 20), dtype=torch.uint8, device=device)

    def seconds(self, way: Way, count: int) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in pairs:
            self._scratch.zero_()
            start.record()
            way()
            end.record()
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / count


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def sample(
    ways: dict[str, Way],
    rounds: int = 15,
    shortest: float = 0.004,
    clock: Clock | None = None,
    budget: float | None = None,
) -> Samples:
    """Seconds a call of each way in each round; a way repeats within its turn until `shortest` seconds have passed.

    Of a way whose turn takes longer than `SLOW`, `LEAST` rounds have to do. `budget`: seconds for all rounds of the
    others; fewer rounds than asked for, but never fewer than `LEAST`, keep to it.
    """
    clock = clock or CpuClock()
    repeats, turn = {}, {}
    for name, way in ways.items():
        way()
        once = max(clock.seconds(way, 1), 1e-7)
        repeats[name] = max(1, min(1000, int(shortest / once)))
        turn[name] = once * (repeats[name] + (once < WARM_BELOW))
    quick = sum(seconds for seconds in turn.values() if seconds <= SLOW)
    if budget is not None:
        rounds = min(rounds, max(LEAST, int(budget / quick))) if quick else min(rounds, LEAST)
    seldom = set(spread(LEAST, rounds))
    samples: Samples = {name: {} for name in ways}
    for round_, order in enumerate(turns(list(ways), rounds)):
        for name in order:
            if turn[name] > SLOW and round_ not in seldom:
                continue
            if turn[name] < WARM_BELOW:
                ways[name]()
            samples[name][round_] = clock.seconds(ways[name], repeats[name])
    return samples


def turns(names: Sequence[str], rounds: int) -> Iterable[list[str]]:
    """The order of each round: forwards, backwards, forwards."""
    for round_ in range(rounds):
        yield list(names)[:: -1 if round_ % 2 else 1]


def spread(count: int, rounds: int) -> list[int]:
    """`count` of the rounds, from the first to the last, evenly."""
    if count >= rounds:
        return list(range(rounds))
    return [round(k * (rounds - 1) / (count - 1)) for k in range(count)]


def times(samples: Samples, name: str) -> list[float]:
    return list(samples[name].values())


def ratios(samples: Samples, ours: str, other: str) -> list[float]:
    """Ours over the other, of each round that both had."""
    a, b = samples[ours], samples[other]
    return [a[round_] / b[round_] for round_ in a if round_ in b]


def paired_ratio(samples: Samples, ours: str, other: str) -> Summary:
    """Below 1: ours is faster."""
    return summary(ratios(samples, ours, other))
