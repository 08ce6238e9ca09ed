"""`pytest benchmarks --benchmark-only`: pytest-benchmark times; what it times is checked first.

--device cuda      on a GPU (default: cpu)
--quick            every op once, at sizes that take no time

`--benchmark-save NAME` and `--benchmark-compare` work as ever; the roofline and each ratio are in `extra_info`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vitcop_kernels.bench import record
from vitcop_kernels.bench.floor import Rates, measure_rates
from vitcop_kernels.bench.sampling import Way, clock_for, paired_ratio, sample
from vitcop_kernels.testing import table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device of the benchmarks")
    parser.addoption("--quick", action="store_true", help="every op once, at sizes that take no time")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info |= record.machine() | {"versions": record.versions()}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    for one in output_json["benchmarks"]:
        one["stats"].pop("data", None)  # a result file holds medians and quartiles, not every round


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.set_num_threads(2)
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def rates(device: torch.device, request: pytest.FixtureRequest) -> Rates:
    """What this machine copies and multiplies at best."""
    return measure_rates(device, table.DTYPES, quick=request.config.getoption("--quick"))


@pytest.fixture
def ratio(benchmark: Any, device: torch.device, request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Ours over another way, in turn, so that a drift of the machine falls on both; `target`: the largest allowed."""

    def measure(ours: Way, other: Way, target: float | None = None, rounds: int = 31) -> None:
        rounds = 3 if request.config.getoption("--quick") else rounds
        found = paired_ratio(sample({"ours": ours, "other": other}, rounds, clock=clock_for(device)), "ours", "other")
        missed = target is not None and found.median > target
        verdict = ("missed" if found.low > target else "unsure") if missed else "" if target is None else "met"
        shown = {"ratio": found.median, "low": found.low, "high": found.high, "target": target, "verdict": verdict}
        benchmark.extra_info |= shown
        benchmark.pedantic(ours, rounds=3, iterations=1, warmup_rounds=1)
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        text = f"{request.node.name}: {found.median:.3f} ({found.low:.3f}-{found.high:.3f}) target {target} {verdict}"
        reporter.write_line(f"\n{text}")

    yield measure
