"""Where the ratio crosses 1, a table and a figure from the result file."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.record import origin
from benchmarks.markdown import table

FIGURE = Path(__file__).parents[3] / "docs" / "evidence" / "crossover.png"


def crossings(xs: Sequence[float], ratios: Sequence[float]) -> list[float]:
    """Where the line through the points crosses 1, up or down, interpolated in log x."""
    found = []
    for (x0, r0), (x1, r1) in itertools.pairwise(zip(xs, ratios, strict=True)):
        if (r0 > 1) != (r1 > 1):
            share = (r0 - 1) / (r0 - r1)
            found.append(math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0))))
    return found


def sentence(sweep: dict[str, Any], phase: str) -> str:
    """Where pruning pays along this axis, and where not: only a whole confidence interval on one side of 1 says so."""
    points = [point for point in sweep["points"] if phase in point]
    groups: dict[str, list[float]] = {"pays at": [], "does not pay at": [], "undecided at": []}
    for point in points:
        found = point[phase]
        name = "pays at" if found["high"] < 1 else "does not pay at" if found["low"] > 1 else "undecided at"
        groups[name].append(point["x"])
    said = "; ".join(f"{name} {_list(values)}" for name, values in groups.items() if values) or "not measured"
    at = crossings([point["x"] for point in points], [point[phase]["median"] for point in points])
    if at:
        said += f"; the medians cross 1 at about {_list([round(x) for x in at])}"
    return f"{phase}, {sweep['axis']}: {said}."


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def section(found: dict[str, Any]) -> str:
    base = found["base"]
    lines = [_line(sweep["axis"], point) for sweep in found["sweeps"] for point in sweep["points"]]
    sentences = [sentence(sweep, phase) for sweep in found["sweeps"] for phase in ("prefill", "decode")]
    parts = [
        "## Where pruning pays, and where not",
        f"Time of ViTCoP at retention {found['retention']:.3f} over that of the unpruned model, end to end: vision "
        f"tower, prefill, choosing and merging, then {found['decoded']} tokens one by one. Random LLaVAs of "
        f"{base['layers']} decoder layers; unless said otherwise width {base['width']}, {base['side'] ** 2} visual "
        "tokens, 57 of text, one prompt. Above 1 pruning costs more than it saves.",
        table(
            ["axis", "value", "visual tokens kept", "prefill, unpruned", "ratio", "95 % CI", "decode, a token", "ratio",
             "95 % CI"], lines, left=1,
        ),
        "\n".join(f"- {text}" for text in sentences),
        "![Pruned over unpruned along each axis](evidence/crossover.png)",
        origin(found),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _line(axis: str, point: dict[str, Any]) -> list[str]:
    if "not_run" in point:
        return [axis, f"{point['x']:g}", f"not run: {point['not_run']}", *[""] * 6]
    kept = " -> ".join(map(str, [point["at"]["visual"], *point["kept"]]))
    cells = [axis, f"{point['x']:g}", kept]
    for phase in ("prefill", "decode"):
        times = sorted(point["seconds"]["unpruned"][phase])
        found = point[phase]
        cells += [f"{1e3 * times[len(times) // 2]:.3g} ms", f"{found['median']:.2f}",
                  f"{found['low']:.2f}-{found['high']:.2f}"]  # fmt: skip
    return cells


def draw(found: dict[str, Any], path: Path = FIGURE) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(1, len(found["sweeps"]), figsize=(3.1 * len(found["sweeps"]), 3.9), sharey=True,
                                layout="constrained")  # fmt: skip
    for axes, sweep in zip(grid, found["sweeps"], strict=True):
        for phase, color in (("prefill", "C0"), ("decode", "C1")):
            points = [point for point in sweep["points"] if phase in point]
            x, y = [p["x"] for p in points], [p[phase]["median"] for p in points]
            spread = [[p[phase]["median"] - p[phase]["low"] for p in points],
                      [p[phase]["high"] - p[phase]["median"] for p in points]]  # fmt: skip
            axes.errorbar(x, y, yerr=spread, marker="o", markersize=4, capsize=2, color=color, label=phase)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.axhspan(1, 10, color="C3", alpha=0.08)
        axes.set_xscale("log", base=2)
        axes.set_xticks([p["x"] for p in sweep["points"]], [f"{p['x']:g}" for p in sweep["points"]], fontsize=7)
        axes.minorticks_off()
        axes.set_xlabel(sweep["axis"].replace(" beside ", "\nbeside "))
        axes.grid(True, alpha=0.25)
    highest = max(p[f]["high"] for s in found["sweeps"] for p in s["points"] for f in ("prefill", "decode") if f in p)
    grid[0].set_ylim(0, min(10, 1.05 * max(highest, 1.2)))
    grid[0].set_ylabel("time, pruned / unpruned")
    figure.suptitle("Above 1 (shaded) pruning costs more than it saves; bars are 95 % intervals", fontsize=10)
    grid[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
