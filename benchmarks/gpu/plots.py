"""Pictures of a result, where matplotlib is there to draw them."""

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], folder: Path, stem: str) -> tuple[list[str], str | None]:
    """(files written, None), or ([], why none)."""
    try:
        import matplotlib
    except ImportError as error:
        return [], f"matplotlib: {error}"
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    mark = "dry run: no GPU was measured" if result["dry_run"] else result["device"]["name"]
    measured = [r for r in result["ops"] if r["status"] == "measured"]
    if measured:
        figure, axes = plt.subplots(figsize=(9, 0.35 * len(measured) + 1.5))
        places = range(len(measured))
        for label, style, pick in (
            ("measured, graph, cold", "o", lambda r: r["ways"]["vitcop"]["graph cold"]["p50"]),
            ("measured, graph, warm", "s", lambda r: r["ways"]["vitcop"]["graph warm"]["p50"]),
            ("estimate on paper", "x", lambda r: r.get("estimate_us")),
            ("floor", "|", lambda r: r["floor_us"]),
            ("target", "d", lambda r: r["target_us"]),
        ):
            points = [(pick(r), y) for r, y in zip(measured, places, strict=True) if pick(r) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label)
        axes.set_yticks(list(places), [f"{r['op']} {r['shape']}" for r in measured], fontsize=7)
        axes.set_xscale("log")
        axes.set_xlabel("microseconds")
        axes.set_title(mark, fontsize=9)
        axes.legend(fontsize=7)
        written.append(_save(figure, folder / f"{stem}-ops.png"))
    models = [m for m in result["models"] if any("total" in run for run in m["runs"])]
    if models:
        figure, grid = plt.subplots(1, len(models), figsize=(4 * len(models), 4), squeeze=False)
        for axes, model in zip(grid[0], models, strict=True):
            by_way: dict[str, list[tuple[float, float]]] = {}
            for run in model["runs"]:
                if run["batch"] == 1 and "total" in run:
                    by_way.setdefault(run["way"], []).append((run["retention"] or 1.0, run["total"]["p50"] / 1e3))
            for way, points in by_way.items():
                axes.plot(*zip(*sorted(points), strict=True), "o-", label=way)
            axes.set_title(f"{model['model']}\n{mark}", fontsize=8)
            axes.set_xlabel("retention")
            axes.set_ylabel("prefill, ms")
            axes.legend(fontsize=7)
        written.append(_save(figure, folder / f"{stem}-prefill.png"))
    plt.close("all")
    return written, None


def _save(figure: Any, path: Path) -> str:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path.name
