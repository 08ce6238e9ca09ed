"""Speed as ratios, taken in one run on two threads, and memory as N grows.

    python -m benchmarks.ratios [--rounds 1.0] [--only OP] [--no-compile] [--no-memory] [--no-save]

Every row's answer is checked against the reference before its time counts. Below 1 is faster than the other side.
"""

import argparse
import statistics
import subprocess
import sys
from typing import Any

import torch

from benchmarks import registry
from benchmarks.harness import machine, ratio, sample, write_results
from benchmarks.registry import OURS, Row

MEMORY_LIMIT = 300  # MB at N = 16384, from the target
MEMORY = """
import sys, torch
torch.set_num_threads(2)
import vitcop_kernels
n = int(sys.argv[1])
def high():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
features, places = torch.randn(n, 1024), torch.rand(n, 2)
vitcop_kernels.vic_cluster(features[:256], places[:256], 8.0, 0.6, 30)  # libraries, threads
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
before = high()
vitcop_kernels.vic_cluster(features, places, 8.0, 0.6, n // 8)
print((high() - before) / 1024)
"""


def measure(row: Row, rounds: float = 1.0) -> list[dict[str, Any]]:
    """One result per comparison of a row."""
    row.check()
    samples = sample(row.ways, max(3, round(row.rounds * rounds)))
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    names = [name for name in row.ways if name != OURS]
    best = min(row.best_of, key=medians.__getitem__) if row.best_of else None
    results = []
    for name in names:
        target = row.targets.get("best eager" if name == best else name)
        results.append(
            {
                "op": row.op,
                "shape": row.shape,
                "other": name,
                "ratio": ratio(samples, OURS, name),
                "ratio_of_fastest": min(samples[OURS]) / min(samples[name]),  # what a busy machine disturbs least
                "target": target,
                "ours_ms": medians[OURS] * 1e3,
                "other_ms": medians[name] * 1e3,
                "samples": {OURS: samples[OURS], name: samples[name]},
            }
        )
    return results


def memory(sizes: tuple[int, ...] = (2048, 4096, 8192, 16384)) -> list[dict[str, Any]]:
    """Peak extra memory in MB of one call, each in a fresh process; the features are there before."""
    results = []
    for n in sizes:
        run = subprocess.run([sys.executable, "-c", MEMORY, str(n)], capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"memory at N={n} not measured: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        results.append({"n": n, "extra_mb": float(run.stdout), "limit_mb": MEMORY_LIMIT if n == 16384 else None})
    return results


def show(results: list[dict[str, Any]], sizes: list[dict[str, Any]]) -> None:
    lines = []
    for r in results:
        verdict = "" if r["target"] is None else ("yes" if r["ratio"] <= r["target"] else "NO")
        target = "" if r["target"] is None else f"{r['target']:.2f}"
        times = (f"{r[key]:.3f}" for key in ("ours_ms", "other_ms", "ratio", "ratio_of_fastest"))
        lines.append((r["op"], r["shape"], r["other"], *times, target, verdict))
    header = ("op", "shape", "against", "ours, ms", "other, ms", "ratio", "of fastest", "target", "met")
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in (header, *lines):
            print("  ".join(line))
    else:
        table = Table(*header)
        for line in lines:
            table.add_row(*line, style="red" if line[-1] == "NO" else None)
        Console(width=None if sys.stdout.isatty() else 180).print(table)
    for r in sizes:
        limit = "" if r["limit_mb"] is None else f" (limit {r['limit_mb']} MB)"
        print(f"vic_cluster, N={r['n']}, D=1024: {r['extra_mb']:.0f} MB extra at the peak{limit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=float, default=1.0, help="factor on the number of rounds")
    parser.add_argument("--only", help="the op to measure")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="compare with torch.compile"
    )
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)

    results = []
    for row in registry.rows(options.compile):
        if options.only in (None, row.op):
            new = measure(row, options.rounds)
            results += new
            ratios = ", ".join(f"{r['ratio']:.3f} of {r['other']}" for r in new)
            print(f"{row.op} {row.shape}: {ratios}", file=sys.stderr, flush=True)
    sizes = memory() if options.memory and options.only in (None, "vic_cluster") else []
    show(results, sizes)
    if options.save:
        print(write_results("ratios", {"ratios": results, "memory": sizes}))
    else:
        print(machine())


if __name__ == "__main__":
    main()
