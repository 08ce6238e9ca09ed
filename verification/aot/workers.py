"""Compiling in parallel processes, each of which collects the configurations for itself."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import triton

from vitcop_kernels._aot import AotSpec

from .compiling import TARGETS, Row, compile_spec
from .specs import collect

_specs: dict[str, AotSpec] = {}


def compile_all(work: dict[str, list[str]], jobs: int) -> Iterator[tuple[str, dict[str, Row] | Exception, float]]:
    """(name, rows by target or what went wrong, CPU seconds) as they come; `work` is targets by name."""
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(cache,)) as pool,
    ):
        running = {pool.submit(_compile, name, targets): name for name, targets in work.items()}
        for future in as_completed(running):
            try:
                yield running[future], *future.result()
            except Exception as error:
                yield running[future], error, 0.0


def _start(cache: str) -> None:
    triton.knobs.cache.dir = cache
    _specs.update({spec.name: spec for of_op in collect().values() for spec in of_op})


def _compile(name: str, targets: list[str]) -> tuple[dict[str, Row], float]:
    before = _cpu_seconds()
    rows = compile_spec(_specs[name], [TARGETS[target] for target in targets])
    return rows, _cpu_seconds() - before


def _cpu_seconds() -> float:
    """Of this process and the assemblers that it ran."""
    return sum(os.times()[:4])
