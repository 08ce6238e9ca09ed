"""Timing that survives a shared machine, and result files that say where they come from.

What is compared runs in turn, in one process, the order reversed from round to round. A ratio is the median of the
ratios of each round: a machine that slows down for a second slows both sides down.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vitcop_kernels

RESULTS = Path(__file__).parent / "results"
Samples = dict[str, list[float]]  # name -> seconds of each round


def sample(ways: dict[str, Callable[[], Any]], rounds: int = 15, shortest: float = 0.004) -> Samples:
    """Seconds per call of each way, one value per round; a way repeats within its turn until `shortest` has passed."""
    repeats = {}
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        way()
        repeats[name] = max(1, min(1000, int(shortest / max(time.perf_counter() - start, 1e-7))))
    samples: Samples = {name: [] for name in ways}
    for round_ in range(rounds):
        for name in list(ways)[:: 1 if round_ % 2 else -1]:
            way, count = ways[name], repeats[name]
            start = time.perf_counter()
            for _ in range(count):
                way()
            samples[name].append((time.perf_counter() - start) / count)
    return samples


def ratio(samples: Samples, ours: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(samples[ours], samples[other], strict=True))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the working tree, marked where it is not what ran."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    native = None if vitcop_kernels.native_error else vitcop_kernels._C.build_info()
    return {
        "processor": processor(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": native,
        "native_error": vitcop_kernels.native_error,
    }


def write_results(name: str, result: dict[str, Any], device: str = "cpu") -> Path:
    """Write benchmarks/results/<device>/<date>-<commit>-<name>.json and return its path."""
    when = datetime.datetime.now(datetime.UTC)
    path = RESULTS / device / f"{when:%Y-%m-%d}-{commit()}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "date": when.isoformat(timespec="seconds"), "commit": commit(), "machine": machine()}
    path.write_text(json.dumps(content | result, indent=1) + "\n")
    return path
