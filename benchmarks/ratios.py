"""The speed and memory targets, reported: every ratio of one run beside its target, with what noise allows one to say.

    python -m benchmarks.ratios [--rounds 1.0] [--only OP] [--no-compile] [--no-memory] [--no-save]

Every row's answer is checked against the reference before its time counts; a wrong answer ends the run. Below 1 is
faster than the other side. A target that is missed is marked and does not fail the command: times belong to a machine,
and a machine that is shared has bad minutes. "missed": the whole confidence interval lies above the target; "unsure":
only the median does.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import registry
from benchmarks.harness import machine, write_results
from benchmarks.memory import NotMeasured, peak_mb
from benchmarks.registry import OURS, Row
from vitcop_kernels.bench.sampling import paired_ratio, sample, times

MEMORY_LIMIT = 300  # MB at N = 16384, from the project's targets


def verdict(ratio: float, low: float, target: float | None) -> str:
    """Whether a ratio, with the lower end of its confidence interval, keeps below its target."""
    if target is None:
        return ""
    if ratio <= target:
        return "met"
    return "unsure" if low <= target else "missed"


def measure(row: Row, rounds: float = 1.0) -> list[dict[str, Any]]:
    """One result per comparison of a row."""
    row.check()
    samples = sample(row.ways, max(3, round(row.rounds * rounds)))
    medians = {name: statistics.median(times(samples, name)) for name in row.ways}
    names = [name for name in row.ways if name != OURS]
    best = min(row.best_of, key=medians.__getitem__) if row.best_of else None
    results = []
    for name in names:
        target = row.targets.get("best eager" if name == best else name)
        ratio = paired_ratio(samples, OURS, name)
        results.append(
            {
                "op": row.op,
                "shape": row.shape,
                "other": name,
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                # What a busy machine disturbs least:
                "ratio_of_fastest": min(times(samples, OURS)) / min(times(samples, name)),
                "target": target,
                "verdict": verdict(ratio.median, ratio.low, target),
                "ours_ms": medians[OURS] * 1e3,
                "other_ms": medians[name] * 1e3,
                "samples": {OURS: times(samples, OURS), name: times(samples, name)},
            }
        )
    return results


def memory(
    sizes: tuple[int, ...] = (2048, 4096, 8192, 16384), tell: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Peak extra memory in MB of one call of vic_cluster; the features are there before."""
    results = []
    for n in sizes:
        try:
            extra = peak_mb("vic_cluster", {"tokens": n, "clusters": n // 8})
        except NotMeasured as error:
            tell(f"memory at N={n} not measured: {error}")
            continue
        limit = MEMORY_LIMIT if n == 16384 else None
        met = "" if limit is None else "met" if extra <= limit else "missed"
        results.append({"n": n, "extra_mb": extra, "limit_mb": limit, "verdict": met})
    return results


def show(results: list[dict[str, Any]], sizes: list[dict[str, Any]]) -> None:
    lines = []
    for r in results:
        target = "" if r["target"] is None else f"{r['target']:.2f}"
        times = (f"{r[key]:.3f}" for key in ("ours_ms", "other_ms", "ratio"))
        spread = f"{r['low']:.3f}-{r['high']:.3f}"
        lines.append((r["op"], r["shape"], r["other"], *times, spread, target, r["verdict"]))
    header = ("op", "shape", "against", "ours, ms", "other, ms", "ratio", "95 % CI", "target", "")
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in (header, *lines):
            print("  ".join(line))
    else:
        table = Table(*header)
        for line in lines:
            table.add_row(*line, style={"missed": "red", "unsure": "yellow"}.get(line[-1]))
        Console(width=None if sys.stdout.isatty() else 180).print(table)
    for r in sizes:
        limit = "" if r["limit_mb"] is None else f" (limit {r['limit_mb']} MB: {r['verdict']})"
        print(f"vic_cluster, N={r['n']}, D=1024: {r['extra_mb']:.0f} MB extra at the peak{limit}")
    judged = [r["verdict"] for r in (*results, *sizes) if r["verdict"]]
    print(f"targets: {judged.count('met')} met, {judged.count('unsure')} unsure, {judged.count('missed')} missed")


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
    if not results:
        parser.error(f"--only: expected an op of the registry, got {options.only!r}")
    sizes = memory() if options.memory and options.only in (None, "vic_cluster") else []
    show(results, sizes)
    if options.save:
        print(write_results("ratios", {"ratios": results, "memory": sizes}))
    else:
        print(machine())


if __name__ == "__main__":
    main()
