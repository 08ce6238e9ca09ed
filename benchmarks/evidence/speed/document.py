"""The part of the page, and its figure, from the result file."""

from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.evidence.record import origin
from benchmarks.markdown import table
from vitcop_kernels.bench.measure import COMPILED, OURS, REFERENCE, Row

FIGURE = Path(__file__).parents[3] / "docs" / "evidence" / "speed.png"
COLUMNS = {OURS: "vitcop", REFERENCE: "reference", COMPILED: "compiled", peers.AUTHORS: "authors"}


def section(found: dict[str, Any]) -> str:
    rows = [row for row in found["rows"] if "refused" not in row]
    refused = [f"{_name(row)}: {row['refused']}" for row in found["rows"] if "refused" in row]
    main = table(
        ["op", "shape", "dtype", "vitcop", "p20-p80", "reference", "compiled", "the authors'", "floor", "over floor"],
        (_main_line(row) for row in rows),
        left=3,
    )
    others = table(
        ["op", "shape", "beside", "its median", "vitcop / it", "95 % CI"],
        (line for row in rows for line in _peer_lines(row)),
        left=3,
    )
    parts = [
        "## Speed at real shapes",
        "Milliseconds a call, medians of interleaved rounds. Each answer was held to the float64 reference before "
        "its time counted. *reference*: plain PyTorch, float64 inside, and *compiled* the same under `torch.compile`; "
        "*the authors'*: an N x N x D difference and Python loops, in our words; *floor*: the bytes and the arithmetic "
        "that no implementation avoids, at the bandwidth and the GEMM rate measured in the same run.",
        main,
        "What else does the work, or other work of the same purpose, in the same rounds. Ratios are of paired rounds; "
        "below 1 vitcop is faster.",
        others,
        "Held to the same answer: "
        + ", ".join(peers.SAME_ANSWERS)
        + ". Of the others: "
        + "; ".join(f"{name}: {what}" for name, what in peers.OTHER_ANSWERS.items())
        + ".",
        _not_run(rows),
        *(["Refused, since the answer was wrong:", "\n".join(f"- {line}" for line in refused)] if refused else []),
        "![Time of each op: vitcop, its reference, the authors' algorithm and the floor](evidence/speed.png)",
        origin(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _name(row: Row) -> str:
    return f"`{row['op']}` {_shape(row)} {row['dtype']}"


def _short(row: Row) -> str:
    return f"{row['op']} N={row['dims']['tokens']} B={row['dims']['batch']} {row['dtype']}"


def _shape(row: Row) -> str:
    return " ".join(f"{name}={size}" for name, size in row["dims"].items())


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def _main_line(row: Row) -> list[str]:
    def cell(name: str) -> str:
        way = row["ways"].get(name, {})
        return ms(way["median_s"]) if "median_s" in way else ""

    ours = row["ways"][OURS]
    return [
        f"`{row['op']}`", _shape(row), row["dtype"], cell(OURS), f"{ms(ours['p20_s'])}-{ms(ours['p80_s'])}",
        cell(REFERENCE), cell(COMPILED), cell(peers.AUTHORS), ms(row["floor_s"]),
        f"{ours['median_s'] / row['floor_s']:.1f}",
    ]  # fmt: skip


def _peer_lines(row: Row) -> list[list[str]]:
    lines = []
    for name, ratio in row["ratios"].items():
        if name in (REFERENCE, COMPILED):
            continue
        lines.append([
            f"`{row['op']}`", f"{_shape(row)} {row['dtype']}", name,
            ms(row["ways"][name]["median_s"]), f"{ratio['median']:.3f}", f"{ratio['low']:.3f}-{ratio['high']:.3f}",
        ])  # fmt: skip
    return lines


def _not_run(rows: list[Row]) -> str:
    """Reasons, each once, with the rows that it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, way in row["ways"].items():
            if "not_run" in way:
                reasons.setdefault((name, way["not_run"]), []).append(_short(row))
    lines = [f"- {name}: {why} ({', '.join(where)})" for (name, why), where in reasons.items()]
    return "\n".join(["Not run:", "", *lines]) if lines else ""


def draw(found: dict[str, Any], path: Path = FIGURE) -> None:
    """One line a row, times on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in found["rows"] if "refused" not in row][::-1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * len(rows)), layout="constrained")
    marks = {OURS: ("o", "C0"), REFERENCE: ("s", "C7"), COMPILED: ("D", "C4"), peers.EAGER: ("v", "C2"),
             peers.EAGER_COMPILED: ("^", "C1"), peers.AUTHORS: ("X", "C3")}  # fmt: skip
    for name, (marker, color) in marks.items():
        points = [(row["ways"][name]["median_s"] * 1e3, y) for y, row in enumerate(rows)
                  if "median_s" in row["ways"].get(name, {})]  # fmt: skip
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, marker=marker, color=color, label=name, zorder=3)
    floors = [row["floor_s"] * 1e3 for row in rows]
    axes.scatter(floors, range(len(rows)), marker="|", s=160, color="black", label="floor of this machine", zorder=2)
    axes.set_yticks(range(len(rows)), [_short(row) for row in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("time of a call, ms (logarithmic)")
    axes.grid(True, axis="x", which="both", alpha=0.25)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.08), ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
