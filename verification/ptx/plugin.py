"""pytest plugin: tests of Triton kernels on compiled PTX in the emulator instead of Triton's interpreter.

python -m pytest -p verification.ptx.plugin --ptx-arch 90 tests/kernels
"""

import json
import os
from collections import Counter
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # before anything imports Triton

import pytest

from . import driver


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ptx", "the PTX emulator")
    group.addoption("--ptx-arch", type=int, default=90, choices=sorted(driver.SHARED), help="compute capability")
    group.addoption("--ptx-seed", type=int, default=1, help="of the order of warps, CTAs and lanes of an atomic")
    group.addoption("--ptx-mode", default="plain", choices=list(driver.MODES), help="see README.md")
    group.addoption("--ptx-tolerate", action="append", default=[], help="kind of finding that fails no test")
    group.addoption("--ptx-json", type=Path, help="file for what was run and found")
    group.addoption("--ptx-counters", action="store_true", help="count sectors and bank conflicts as well")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    chosen = early_config.known_args_namespace
    driver.install(chosen.ptx_arch)
    driver.config.seed = chosen.ptx_seed
    driver.config.counters = chosen.ptx_counters
    driver.config.tolerate = tuple(chosen.ptx_tolerate)
    for name, value in driver.MODES[chosen.ptx_mode].items():
        setattr(driver.config, name, value)


def pytest_report_header(config: pytest.Config) -> str:
    return f"PTX emulator: sm_{config.option.ptx_arch}, seed {config.option.ptx_seed}, mode {config.option.ptx_mode}"


def summary() -> tuple[dict[str, Counter[str]], Counter[tuple[str, str, str]]]:
    """Launches, warp instructions and milliseconds by kernel; findings by kernel, kind and place."""
    totals: dict[str, Counter[str]] = {}
    findings: Counter[tuple[str, str, str]] = Counter()
    for entry in driver.log:
        of_kernel = totals.setdefault(entry.kernel, Counter())
        of_kernel.update(launches=1, instructions=entry.result["instructions"], milliseconds=int(entry.seconds * 1e3))
        for count, what in entry.result["reports"]:
            findings[entry.kernel, what.split(";")[0], what[what.find("[") : what.find("]") + 1]] += count
    return totals, findings


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    totals, findings = summary()
    write = terminalreporter.write_line
    write(f"{'executed as PTX':32} {'launches':>8} {'warp instructions':>18} {'seconds':>8}")
    for kernel, n in sorted(totals.items()):
        write(f"  {kernel:30} {n['launches']:8} {n['instructions']:18,} {n['milliseconds'] / 1e3:8.1f}")
    for (kernel, what, place), count in findings.most_common(60):
        write(f"  finding, {count} times: {kernel} {place} {what[:150]}")
    if config.option.ptx_json is None:
        return
    stats = terminalreporter.stats
    failed = [report.nodeid for kind in ("failed", "error") for report in stats.get(kind, [])]
    result = {
        "passed": len(stats.get("passed", [])),
        "skipped": len(stats.get("skipped", [])),
        "failed": sorted(failed),
        "launches": sum(n["launches"] for n in totals.values()),
        "warp_instructions": sum(n["instructions"] for n in totals.values()),
        "findings": sorted({" ".join(key) for key in findings}),
    }
    config.option.ptx_json.write_text(json.dumps(result, indent=2))
