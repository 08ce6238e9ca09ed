"""Every op at the shapes of the table: vitcop, its reference, the reference compiled, and what else does the work."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import peers
from vitcop_kernels.bench.floor import Rates
from vitcop_kernels.testing import table
from vitcop_kernels.testing.judge import verify
from vitcop_kernels.testing.op import Case, Shape

COMPILED = "reference compiled"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = list(ways(metafunc.config.getoption("--quick")))
    metafunc.parametrize(("op", "shape", "way"), cases, ids=[f"{op}-{name(shape)}-{way}" for op, shape, way in cases])


def name(shape: Shape) -> str:
    return " ".join([*(f"{dim}={size}" for dim, size in shape.dims.items()), shape.dtype])


def ways(quick: bool) -> Iterator[tuple[str, Shape, str]]:
    """One shape of each op is compiled, and none in a hurry: compiling takes longer than measuring."""
    seen: set[str] = set()
    for op, shape in table.real(quick):
        yield op, shape, "vitcop"
        for way in ("reference", COMPILED, *peers.WAYS.get(op, {})):
            if "compiled" not in way or not (quick or op in seen):
                yield op, shape, way
        seen.add(op)


@functools.lru_cache(maxsize=1)
def built(op: str, dims: tuple[tuple[str, int], ...], dtype: str, device: torch.device) -> Case:
    return table.build(op, dict(dims), dtype, device)


@pytest.mark.benchmark(min_rounds=5, max_time=0.5, warmup=True, warmup_iterations=2)
def test_op(op: str, shape: Shape, way: str, benchmark: Any, device: torch.device, rates: Rates) -> None:
    case = built(op, tuple(shape.dims.items()), shape.dtype, device)
    benchmark.group = case.name
    if way == "vitcop":
        run, answer = case.run, case.run()
        verify(op, case.args, case.kwargs, answer)
        floor = rates.floor(case.bytes(answer), case.flops, case.dtype_name)
        benchmark.extra_info |= {"roofline_s": floor, "bytes": case.bytes(answer), "flops": case.flops}
    elif way == "reference":
        run = case.reference
    elif way == COMPILED:
        torch._dynamo.reset()  # shapes of other cases would count as recompilations
        run = case.compiled_reference()
    else:
        try:
            run, check = peers.WAYS[op][way](case)
            if check is not None:
                check(run())
        except peers.Absent as reason:
            pytest.skip(f"{way}: {reason}")

    def synchronised() -> None:
        run()
        torch.cuda.synchronize(device)

    benchmark(run if device.type == "cpu" else synchronised)
    if way == "vitcop" and benchmark.stats is not None:
        benchmark.extra_info["over_roofline"] = benchmark.stats.stats.median / benchmark.extra_info["roofline_s"]
