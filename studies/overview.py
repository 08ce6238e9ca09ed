"""docs/overview.png: visual tokens, prefill time and accuracy with and without pruning, from committed results.

python -m studies.overview
"""

import json
import statistics
from pathlib import Path
from typing import Any

from .quality.document import Page
from .quality.results import Results
from .quality.settings import named

ROOT = Path(__file__).parents[1]
PREFILL = ROOT / "benchmarks" / "results" / "cpu" / "2026-11-23-d7a3354843f3-prefill.json"
PICTURE = ROOT / "docs" / "overview.png"
INK, FAINT, BEFORE, AFTER = "#1b1f24", "#6e7781", "#d0d7de", "#4e9ee0"
LAYERS = (2, 20, 10)  # decoder layers after each stage


def panels() -> list[tuple[str, str, list[tuple[str, float, str]]]]:
    """Title, conditions, and bars (name, value, label) of each panel."""
    prefill: dict[str, Any] = json.loads(PREFILL.read_text())
    kept, total = prefill["config"]["kept"], prefill["config"]["visual_tokens"]
    mean = sum(layers * tokens for layers, tokens in zip(LAYERS, kept, strict=True)) / sum(LAYERS)
    before, after = (statistics.median(prefill["seconds"][name]) for name in ("unpruned", "vitcop"))
    page = Page(Results.read("test"))
    budget = "11.1"
    scores = [
        ("unpruned", 100.0),
        ("ViTCoP", 100 * page.retained(named("vitcop", budget, True)).value),
        ("ViTCoP.tuned", 100 * page.retained(f"tuned-{budget}").value),
        ("VisionOnly", 100 * page.retained(named("vision_only", budget, True)).value),
    ]
    return [
        (
            "Visual tokens",
            "of LLaVA-1.5, mean over the decoder layers",
            [("unpruned", total, f"{total}"), ("ViTCoP", mean, f"{mean:.1f}")],
        ),
        (
            "Prefill",
            "size of LLaVA-1.5-7B, float32, 2 CPU threads",
            [("unpruned", before, f"{before:.1f} s"), ("ViTCoP", after, f"{after:.1f} s")],
        ),
        (
            "Accuracy",
            "% of the unpruned; vitcop-tiny, 1/9 of the tokens",
            [(name, value, f"{value:.1f} %") for name, value in scores],
        ),
    ]


def draw(path: Path = PICTURE) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.0), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    for axis, (title, conditions, bars) in zip(figure.subplots(1, 3), panels(), strict=True):
        names, values, labels = zip(*bars, strict=True)
        rows = range(len(bars))
        axis.barh(rows, values, color=[BEFORE, *[AFTER] * (len(bars) - 1)], height=0.7)
        for row, value, label in zip(rows, values, labels, strict=True):
            axis.text(value, row, f" {label}", va="center", fontsize=12, fontweight="bold", color=INK)
        axis.set_yticks(rows, names, fontsize=11, color=INK)
        axis.set_ylim(3.6, -0.6)
        axis.set_xlim(0, max(values) * 1.35)
        axis.set_xticks([])
        axis.tick_params(left=False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_title(title, loc="left", fontsize=15, fontweight="bold", color=INK, pad=22)
        axis.text(0, 1.03, conditions, transform=axis.transAxes, fontsize=9.5, color=FAINT)
    figure.subplots_adjust(left=0.075, right=0.985, top=0.78, bottom=0.02, wspace=0.38)
    figure.savefig(path, format="png", metadata={"Software": "vitcop"})


if __name__ == "__main__":
    draw()
