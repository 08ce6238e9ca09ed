"""The registry under pytest-benchmark: `python -m pytest benchmarks --benchmark-only`, with all its statistics."""

import pytest
import torch

from benchmarks.registry import rows

CASES = [
    pytest.param(row, name, id=f"{row.op}, {row.shape}, {name}")
    for row in rows(compiled=False)
    for name in row.ways
    if row.rounds > 5
]


@pytest.mark.parametrize(("row", "name"), CASES)
def test_time(row, name, benchmark) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(2)
    row.check()
    benchmark.group = f"{row.op}, {row.shape}"
    benchmark(row.ways[name])
