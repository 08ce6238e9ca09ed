"""Slopes, tables and figure from the result file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence.record import origin
from benchmarks.markdown import table
from vitcop_kernels.bench.measure import OURS

FIGURE = Path(__file__).parents[3] / "docs" / "evidence" / "scale.png"
# Fitted where the axis rules: below, a call's fixed costs do; memory below 1 MB is the allocator's.
FROM = {"tokens": 1024, "width": 256, "batch": 4}
SMALLEST_MB = 1.0


class Slope(NamedTuple):
    """Of log y over log x: y grows as x to this power, between the first and the last x fitted."""

    slope: float
    error: float  # standard error
    first: float
    last: float


def slope(xs: Sequence[float], ys: Sequence[float], start: float) -> Slope | None:
    """Least squares over the points from `start` on; None with fewer than three."""
    chosen = [(x, y) for x, y in zip(xs, ys, strict=True) if x >= start and y > 0]
    if len(chosen) < 3:
        return None
    x, y = np.log(np.asarray(chosen, dtype=float)).T
    power, offset = np.polyfit(x, y, 1)
    residual = float(np.square(y - power * x - offset).sum())
    error = (residual / (len(x) - 2) / float(np.square(x - x.mean()).sum())) ** 0.5
    return Slope(float(power), error, chosen[0][0], chosen[-1][0])


def series(points: Sequence[dict[str, Any]], name: str, key: str = "median_s") -> tuple[list[float], list[float]]:
    """x and y of one way, where it was run."""
    pairs = [(p["x"], p["ways"][name][key]) for p in points if key in p["ways"].get(name, {})]
    return [x for x, _ in pairs], [y for _, y in pairs]


def names(points: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for p in points for name in p["ways"]))


def slopes(found: dict[str, Any]) -> list[tuple[str, str, str, Slope]]:
    """(what, op, way, slope) of every curve that has one."""
    lines = []
    for sweep in found["sweeps"]:
        for name in names(sweep["points"]):
            fit = slope(*series(sweep["points"], name), FROM[sweep["axis"]])
            if fit is not None:
                lines.append((f"time over {sweep['axis']}", sweep["op"], name, fit))
    for name in names(found["memory"]):
        x, y = series(found["memory"], name, "mb")
        large = [(a, b) for a, b in zip(x, y, strict=True) if b >= SMALLEST_MB]
        fit = slope([a for a, _ in large], [b for _, b in large], 0)
        if fit is not None:
            lines.append(("peak memory over tokens", "vic_cluster", name, fit))
    return lines


def section(found: dict[str, Any]) -> str:
    fits = table(
        ["what", "op", "way", "slope", "standard error", "fitted from", "to"],
        (
            [what, f"`{op}`", way, f"{fit.slope:.2f}", f"{fit.error:.2f}", f"{fit.first:g}", f"{fit.last:g}"]
            for what, op, way, fit in slopes(found)
        ),
        left=3,
    )
    parts = [
        "## Growth with tokens, width, batch and threads",
        "A slope of 2 on logarithmic axes means four times the cost for twice the tokens. Density peaks compare all "
        "pairs, so time grows with the square of the tokens once pairs rule; memory need not, where no matrix of pairs "
        "is kept. Slopes are fitted where the axis rules, from the first to the last value named.",
        fits,
        "![Time and peak memory on logarithmic axes](evidence/scale.png)",
        _tokens_table(found),
        _threads_table(found),
        _refused(found),
        origin(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tokens_table(found: dict[str, Any]) -> str:
    sweep = next(s for s in found["sweeps"] if s["op"] == "vic_cluster" and s["axis"] == "tokens")
    memory = {point["x"]: point["ways"] for point in found["memory"]}
    ways = names(sweep["points"])

    def line(point: dict[str, Any]) -> list[str]:
        cells = [str(point["x"])]
        for name in ways:
            time = point["ways"].get(name, {}).get("median_s")
            mb = memory.get(point["x"], {}).get(name, {}).get("mb")
            cells += ["" if time is None else f"{1e3 * time:.3g}", "" if mb is None else f"{mb:.1f}"]
        return cells

    head = ["tokens", *(text for name in ways for text in (f"{name}, ms", "MB"))]
    why = sorted(
        {f"{n}: {w['not_run']}" for p in (*sweep["points"], *found["memory"]) for n, w in p["ways"].items()
         if "not_run" in w}
    )  # fmt: skip
    what = "`vic_cluster`, D = 1024, one sample; MB is what a call adds at its peak to memory freed before."
    text = f"{what}\n\n{table(head, map(line, sweep['points']), left=0)}"
    return text + ("\n\nNot run: " + "; ".join(why) + "." if why else "")


def _threads_table(found: dict[str, Any]) -> str:
    lines = []
    for sweep in found["threads"]:
        counts, times = series(sweep["points"], OURS)
        cells = (f"{c:g}: {1e3 * t:.3g} ms ({times[0] / t:.2f} x)" for c, t in zip(counts, times, strict=True))
        lines.append([f"`{sweep['op']}`", str(sweep["fixed"]["tokens"]), ", ".join(cells)])
    return "By threads, and how much faster than one:\n\n" + table(["op", "tokens", "threads: time"], lines, left=3)


def _refused(found: dict[str, Any]) -> str:
    wrong = [p["refused"] for s in (*found["sweeps"], *found["threads"]) for p in s["points"] if "refused" in p]
    return "\n".join(["Refused, since the answer was wrong:", "", *(f"- {text}" for text in wrong)]) if wrong else ""


def draw(found: dict[str, Any], path: Path = FIGURE) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    tokens = {s["op"]: s["points"] for s in found["sweeps"] if s["axis"] == "tokens"}
    panels = [
        (grid[0, 0], "vic_cluster, D = 1024", "tokens N", "time of a call, ms",
         [(name, *series(tokens["vic_cluster"], name), FROM["tokens"], 1e3) for name in names(tokens["vic_cluster"])]),
        (grid[0, 1], "vic_cluster, D = 1024", "tokens N", "peak memory of a call, MB",
         [(name, *series(found["memory"], name, "mb"), None, 1.0) for name in names(found["memory"])]),
        (grid[1, 0], "the other ops", "tokens N", "time of a call, ms",
         [(op, *series(points, OURS), FROM["tokens"], 1e3) for op, points in tokens.items() if op != "vic_cluster"]),
        (grid[1, 1], "vic_cluster: width D and batch B", "D at N = 576, or B at N = 288", "time of a call, ms",
         [(s["axis"], *series(s["points"], OURS), FROM[s["axis"]], 1e3) for s in found["sweeps"]
          if s["axis"] != "tokens"]),
    ]  # fmt: skip
    for axes, title, xlabel, ylabel, curves in panels:
        for name, x, y, start, scale in curves:
            if not x:
                continue
            large = [(a, b) for a, b in zip(x, y, strict=True) if start is not None or b >= SMALLEST_MB]
            fit = slope([a for a, _ in large], [b for _, b in large], start or 0)
            label = name if fit is None else f"{name}: slope {fit.slope:.2f} from {fit.first:g}"
            axes.plot(x, [scale * b for b in y], marker="o", markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
