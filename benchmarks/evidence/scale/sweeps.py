"""What is measured along each axis."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import baselines, peers
from benchmarks.memory import NotMeasured, peak_mb
from vitcop_kernels.bench import cases
from vitcop_kernels.bench.measure import OURS, measure

from .check import checked

CDIST = "cdist, eager PyTorch"
CDIST_TOKENS = 8192  # several N x N matrices of float32: 16384 tokens would be 5 GiB
AUTHORS_TOKENS = 512
Tell = Callable[[str], None]
Point = dict[str, Any]


def powers(first: int, last: int) -> list[int]:
    found = [first]
    while found[-1] * 2 <= last:
        found.append(found[-1] * 2)
    return found


def sweeps(largest: int) -> Iterator[tuple[str, str, list[int], dict[str, int]]]:
    """(axis, op, values, fixed dimensions)"""
    for op in ("vic_cluster", "plan_tokens", "segment_mean", "select_tokens", "key_norms"):
        yield "tokens", op, powers(64, largest), {}
    at = min(576, largest)
    yield "width", "vic_cluster", powers(64, 4096 if largest > 1024 else 256), {"tokens": at}
    yield "batch", "vic_cluster", powers(1, 32 if largest > 1024 else 4), {"tokens": min(288, largest)}


def times(largest: int, seconds: float, tell: Tell) -> list[dict[str, Any]]:
    found = []
    for axis, op, values, fixed in sweeps(largest):
        points = []
        for value in values:
            tell(f"{op}, {axis} = {value}")
            points.append(_point(op, {**fixed, axis: value}, seconds, beside=axis == "tokens") | {"x": value})
        found.append({"axis": axis, "op": op, "fixed": fixed, "points": points})
    return found


def _point(op: str, dims: dict[str, int], seconds: float, beside: bool, rounds: int = 11) -> Point:
    """`beside`: other ways to do it as well."""
    case = cases.build(op, dims)
    n, others, skipped = case.dims["tokens"], {}, {}
    if op == "vic_cluster" and beside:
        x, *rest = case.args
        for name, function, most in (
            (CDIST, baselines.cluster_with_cdist, CDIST_TOKENS),
            (peers.AUTHORS, baselines.cluster_as_released, AUTHORS_TOKENS),
        ):
            if n > most:
                skipped[name] = f"not above {most} tokens: seconds, and gigabytes"
            else:
                others[name] = (lambda f=function: f(x[0], *rest)[0], _like(case))
    row = measure(
        case, compiled=False, reference=False, others=others, skipped=skipped, rounds=rounds, seconds=seconds,
        check=checked,
    )  # fmt: skip
    return {"ways": row["ways"], **({"refused": row["refused"]} if "refused" in row else {})}


def _like(case: cases.Case) -> Callable[[Any], None]:
    """Against ours, which was checked: the float64 reference of the larger ones takes longer than all the rest."""
    labels = case.run()[0][0]

    def check(answer: torch.Tensor) -> None:
        share = (answer == labels).float().mean().item()
        assert share >= 0.98, f"only {share:.1%} of the labels are those of vitcop"

    return check


def threads(seconds: float, sizes: tuple[int, ...], tell: Tell) -> list[dict[str, Any]]:
    before, found = torch.get_num_threads(), []
    try:
        for op, n in [("vic_cluster", n) for n in sizes] + [("segment_mean", max(sizes))]:
            points = []
            for count in powers(1, os.cpu_count() or 1):
                tell(f"{op}, {n} tokens, {count} threads")
                torch.set_num_threads(count)
                points.append(_point(op, {"tokens": n}, seconds, beside=False) | {"x": count})
            found.append({"axis": "threads", "op": op, "fixed": {"tokens": n}, "points": points})
    finally:
        torch.set_num_threads(before)
    return found


def memory(largest: int, tell: Tell) -> list[Point]:
    """MB that a call of vic_cluster adds at its peak, each in a process of its own."""
    found = []
    for n in powers(64, largest):
        ways: dict[str, Any] = {}
        for name, way, most in (
            (OURS, "vitcop", largest), (CDIST, "cdist", CDIST_TOKENS), (peers.AUTHORS, "as written", AUTHORS_TOKENS),
        ):  # fmt: skip
            if n > most:
                ways[name] = {"not_run": f"not above {most} tokens"}
                continue
            tell(f"memory of {name}, {n} tokens")
            try:
                ways[name] = {"mb": peak_mb("vic_cluster", {"tokens": n}, way=way)}
            except NotMeasured as error:
                ways[name] = {"not_run": str(error)}
        found.append({"x": n, "ways": ways})
    return found
