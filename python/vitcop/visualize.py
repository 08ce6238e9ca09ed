"""The picture of a pruned prefill: the photograph as the model saw it, with what each stage kept. Needs matplotlib."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .engine.report import Report, StageReport

INK, FAINT, ACCENT = "#1b1f24", "#6e7781", "#d1495b"
FADED = 0.8  # how far what was dropped fades into white
TABLEAU = (
    "#4e9ee0", "#ff9f40", "#5cc45a", "#f2594b", "#a97fd8", "#f7d038", "#ef82c2", "#3fc9c9", "#b98863", "#a8d04c",
)  # fmt: skip


@dataclass
class Grid:
    """A photograph [H, W, 3] in [0, 1] under side x side visual tokens in raster order."""

    photo: np.ndarray
    side: int

    def cell(self, token: int) -> tuple[int, int]:
        """(column, row) of a token's upper left corner, in units of tokens."""
        return token % self.side, token // self.side

    def middle(self, token: int) -> tuple[float, float]:
        column, row = self.cell(token)
        return column + 0.5, row + 0.5

    def faded(self, bright: Sequence[int]) -> np.ndarray:
        """The photograph, faded and grey but for these tokens."""
        mask = np.zeros(self.side * self.side, dtype=bool)
        mask[list(bright)] = True
        height, width = self.photo.shape[:2]
        rows = np.arange(height) * self.side // height
        columns = np.arange(width) * self.side // width
        shown = mask.reshape(self.side, self.side)[rows][:, columns, None]
        grey = self.photo.mean(-1, keepdims=True)
        faded = FADED + (1 - FADED) * (0.3 * self.photo + 0.7 * grey)
        return np.where(shown, self.photo, faded)

    def tint(self, colours: dict[int, str], alpha: float) -> np.ndarray:
        """[side, side, 4] overlay that paints tokens."""
        from matplotlib.colors import to_rgba

        overlay = np.zeros((self.side * self.side, 4))
        for token, colour in colours.items():
            overlay[token] = to_rgba(colour, alpha)
        return overlay.reshape(self.side, self.side, 4)


def square_side(report: Report, sample: int = 0) -> int | None:
    """Side of the grid that a sample's visual tokens form, None where they are not one square image."""
    side = math.isqrt(report.visual_tokens[sample])
    return side if side > 0 and side * side == report.visual_tokens[sample] else None


def save_stages(
    path: str | Path,
    photo: np.ndarray,
    report: Report,
    *,
    title: str,
    subtitle: str = "",
    sample: int = 0,
    dpi: int = 110,
) -> None:
    """Write the picture of one sample as PNG.

    Args:
        photo: `[H, W, 3]`, values in [0, 1], cut to what the model saw.
        report: of a prefill with one square image per sample. Of methods other than ViTCoP the first four stages are
            drawn.

    Raises:
        ValueError: no visual tokens, or they do not form one square grid.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = square_side(report, sample) if report.visual_tokens else None
    if side is None:
        raise ValueError("report: expected the visual tokens of one square image, got another number of them")
    grid = Grid(np.clip(photo, 0, 1), side)
    stages = {stage.name: stage for stage in report.stages}
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK, "axes.titlecolor": INK}):
        figure = Figure(figsize=(13.6, 10.84), dpi=dpi, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3, gridspec_kw={"wspace": 0.07, "hspace": 0.19})
        figure.subplots_adjust(left=0.02, right=0.98, top=0.855, bottom=0.015)
        figure.text(0.02, 0.953, title, fontsize=20, fontweight="bold")
        figure.text(0.02, 0.922, subtitle, fontsize=12.5, color=FAINT)
        panels = axes.flatten()
        _input(panels[0], grid, report.visual_tokens[sample])
        colours = cluster_colours(stages.get("stage2"), sample)
        if "stage1" in stages:
            _kept(panels[1], grid, stages["stage1"], sample)
        if "stage2" in stages:
            _clusters(panels[2], grid, stages["stage2"], colours, sample)
            _merged(panels[3], grid, stages["stage2"], stages["stage2"], colours, sample)
        if "stage3" in stages:
            _merged(panels[4], grid, stages["stage3"], stages.get("stage2"), colours, sample)
        if not stages.keys() & {"stage1", "stage2", "stage3"}:
            for panel, stage in zip(panels[1:5], report.stages, strict=False):
                _outcome(panel, grid, stage, sample)
        for panel in panels[:5]:
            if not panel.has_data():
                panel.set_axis_off()
        _layers(panels[5], report, sample)
        figure.savefig(path, format="png", metadata={"Software": "vitcop"})


def cluster_colours(stage: StageReport | None, sample: int) -> dict[int, str]:
    """Unpruned visual token -> colour of its cluster in Stage II. The largest clusters get the most distinct ones."""
    if stage is None or stage.labels is None:
        return {}
    labels = [label for label in stage.labels[sample].tolist()[: stage.tokens_in[sample]]]
    tokens = _inputs(stage, sample)
    sizes = {label: labels.count(label) for label in labels if label >= 0}
    order = sorted(sizes, key=lambda label: (-sizes[label], label))
    palette = {label: _colour(rank) for rank, label in enumerate(order)}
    return {token: palette[label] for token, label in zip(tokens, labels, strict=True) if label >= 0}


def _colour(rank: int) -> str:
    if rank < len(TABLEAU):
        return TABLEAU[rank]
    hue = (rank * 0.61803398875) % 1  # golden angle: neighbours in rank differ most
    red, green, blue = colorsys.hls_to_rgb(hue, 0.5 + 0.2 * (rank % 3 - 1), 0.65)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _inputs(stage: StageReport, sample: int) -> list[int]:
    """Unpruned visual tokens at whose places the inputs of a stage stand."""
    if stage.previous is None:
        return list(range(stage.tokens_in[sample]))
    return stage.previous.kept[sample].tolist()[: stage.tokens_in[sample]]


def _show(axis: Any, grid: Grid, image: np.ndarray, title: str, subtitle: str) -> None:
    axis.imshow(image, extent=(0, grid.side, grid.side, 0), interpolation="lanczos")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.text(0, -1.28, title, fontsize=14, fontweight="bold", va="bottom", clip_on=False)
    axis.text(0, -0.32, subtitle, fontsize=10.5, color=FAINT, va="bottom", clip_on=False)


def _mesh(axis: Any, grid: Grid) -> None:
    for k in range(grid.side + 1):
        axis.axhline(k, color="white", lw=0.5, alpha=0.45)
        axis.axvline(k, color="white", lw=0.5, alpha=0.45)


def _overlay(axis: Any, grid: Grid, colours: dict[int, str], alpha: float) -> None:
    axis.imshow(grid.tint(colours, alpha), extent=(0, grid.side, grid.side, 0), interpolation="nearest")


def _boxes(axis: Any, grid: Grid, tokens: Sequence[int], colour: str, width: float) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    inset = 0.06
    boxes = [Rectangle((x + inset, y + inset), 1 - 2 * inset, 1 - 2 * inset) for x, y in map(grid.cell, tokens)]
    axis.add_collection(PatchCollection(boxes, facecolors="none", edgecolors=colour, linewidths=width))


def _input(axis: Any, grid: Grid, total: int) -> None:
    _show(
        axis,
        grid,
        grid.photo,
        f"Input: {total} visual tokens",
        f"{grid.side} x {grid.side} patches, as the model sees them",
    )
    _mesh(axis, grid)


def _kept(axis: Any, grid: Grid, stage: StageReport, sample: int) -> None:
    kept = stage.kept[sample].tolist()[: stage.tokens_out[sample]]
    subtitle = f"the {len(kept)} patches with most [CLS] attention"
    _show(
        axis, grid, grid.faded(kept), f"Stage I: {stage.tokens_in[sample]} \N{RIGHTWARDS ARROW} {len(kept)}", subtitle
    )
    _mesh(axis, grid)


def _clusters(axis: Any, grid: Grid, stage: StageReport, colours: dict[int, str], sample: int) -> None:
    inputs, number = _inputs(stage, sample), len(set(colours.values()))
    centers = _centers(stage, sample)
    subtitle = f"density peaks of CLIP's keys{' (dots: centres)' if centers else ''}"
    _show(axis, grid, grid.faded(inputs), f"Visual clusters: {number} of {len(inputs)} tokens", subtitle)
    _overlay(axis, grid, colours, 0.82)
    _mesh(axis, grid)
    if centers:
        x, y = zip(*map(grid.middle, centers), strict=True)
        axis.scatter(x, y, s=30, c="white", edgecolors=INK, linewidths=1, zorder=4)


def _centers(stage: StageReport, sample: int) -> list[int]:
    """Unpruned visual tokens that are cluster centres, where the report tells them."""
    inputs = _inputs(stage, sample)
    for images, rows in stage.rows.items():
        plan = stage.plans.get(images)
        if sample in rows and plan is not None and plan.centers is not None:
            return [inputs[i] for i in plan.centers[rows.index(sample)].tolist() if i >= 0]
    return []


def _merged(
    axis: Any, grid: Grid, stage: StageReport, merging: StageReport | None, colours: dict[int, str], sample: int
) -> None:
    """What a stage kept: single tokens framed, means as dots tied to their members."""
    places = stage.kept[sample].tolist()[: stage.tokens_out[sample]]
    means = _means(merging, sample)
    merged = [(place, members) for place, members in zip(places, stage.segments(sample), strict=True) if place in means]
    singles = [place for place in places if place not in means]
    number = {"stage2": "II", "stage3": "III"}[stage.name]
    _draw(axis, grid, f"Stage {number}", stage, sample, singles, merged, colours)


def _outcome(axis: Any, grid: Grid, stage: StageReport, sample: int) -> None:
    """The same of any method's stage: outputs of one token, means of several, and some of none ([CLS])."""
    places = stage.kept[sample].tolist()[: stage.tokens_out[sample]]
    made = list(zip(places, stage.segments(sample), strict=True))
    merged = [(place, members) for place, members in made if len(members) > 1]
    singles = [members[0] for _, members in made if len(members) == 1]
    colours = {place: _colour(rank) for rank, (place, _) in enumerate(merged)}
    _draw(axis, grid, stage.name, stage, sample, singles, merged, colours)


def _draw(
    axis: Any, grid: Grid, name: str, stage: StageReport, sample: int, singles: list[int],
    merged: list[tuple[int, list[int]]], colours: dict[int, str],
) -> None:  # fmt: skip
    from matplotlib.collections import LineCollection

    painted = {token: colours.get(place, "#ffffff") for place, members in merged for token in members}
    parts = [f"{len(singles)} kept (framed)"]
    if merged:
        tokens = sum(len(members) for _, members in merged)
        parts.append(f"{len(merged)} merged (dots) from {tokens} tokens")
    arrow = "\N{RIGHTWARDS ARROW}"
    title = f"{name}: {stage.tokens_in[sample]} {arrow} {stage.tokens_out[sample]}, before layer {stage.layer}"
    _show(axis, grid, grid.faded(singles), title, ", ".join(parts))
    _overlay(axis, grid, painted, 0.6)
    _mesh(axis, grid)
    lines, line_colours = [], []
    for place, members in merged:
        for token in members:
            if token != place:
                lines.append([grid.middle(place), grid.middle(token)])
                line_colours.append(colours.get(place, "#ffffff"))
    axis.add_collection(LineCollection(lines, colors="white", linewidths=2.6, alpha=0.8))
    axis.add_collection(LineCollection(lines, colors=line_colours, linewidths=1.2, alpha=0.95))
    _boxes(axis, grid, singles, INK, 1.7)
    if merged:
        x, y = zip(*(grid.middle(place) for place, _ in merged), strict=True)
        faces = [colours.get(place, "#ffffff") for place, _ in merged]
        axis.scatter(x, y, s=100, c=faces, edgecolors=INK, linewidths=1.5, zorder=4)


def _means(stage: StageReport | None, sample: int) -> set[int]:
    """The places of Stage II's merged tokens."""
    if stage is None or stage.merged is None:
        return set()
    kept = stage.kept[sample].tolist()[: stage.tokens_out[sample]]
    return {place for place, is_mean in zip(kept, stage.merged[sample].tolist(), strict=False) if is_mean}


def _layers(axis: Any, report: Report, sample: int) -> None:
    """Visual tokens at each decoder layer, and what that saves."""
    tokens, total = report.layer_tokens(sample), report.visual_tokens[sample]
    flops = report.flops
    layers = len(tokens)
    edges = np.arange(layers + 1)
    axis.stairs([total] * layers, edges, fill=True, color="#e9ecef", label="unpruned")
    axis.stairs(tokens, edges, fill=True, color=TABLEAU[0])
    axis.set_xlim(0, layers)
    axis.set_ylim(0, total)
    box = axis.get_position()
    axis.set_position([box.x0, box.y0 + 0.045, box.width, box.height - 0.045])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(colors=FAINT, labelsize=9.5)
    axis.set_yticks([])
    axis.text(layers / 2, total * 0.955, str(total), ha="center", va="top", fontsize=11, fontweight="bold", color=FAINT)
    axis.set_xlabel("decoder layer", fontsize=10.5, color=FAINT)
    start = 0
    for end in range(1, layers + 1):
        if end == layers or tokens[end] != tokens[start]:
            middle = (start + end) / 2
            height = min(tokens[start] + total * 0.015, total * 0.955)  # of a full layer: within it
            axis.text(max(middle, 1.3), height, str(tokens[start]), ha="center", fontsize=11, fontweight="bold",
                      color=INK)  # fmt: skip
            start = end
    saved = [
        ("visual tokens", report.mean_tokens, total),
        ("prefill FLOPs", flops.counter, flops.counter_unpruned),
        ("KV cache", report.kv_bytes, report.kv_bytes_unpruned),
    ]
    for line, (name, after, before) in enumerate(saved):
        height = total * (0.76 - 0.08 * line)
        axis.text(layers * 0.58, height, f"{name} saved", ha="right", va="center", fontsize=11.5)
        axis.text(layers * 0.62, height, _less(after, before), ha="left", va="center", fontsize=11.5, fontweight="bold")
    unit = box.height / (box.height - 0.045) / 24  # a token's side in the other panels
    axis.text(
        0,
        1 + 1.28 * unit,
        f"Decoder: {report.mean_tokens:.1f} tokens on average",
        fontsize=14,
        fontweight="bold",
        va="bottom",
        transform=axis.transAxes,
    )
    axis.text(0, 1 + 0.32 * unit, "visual tokens of each layer (grey: unpruned)", fontsize=10.5, color=FAINT,
              va="bottom", transform=axis.transAxes)  # fmt: skip


def _less(after: float, before: float) -> str:
    """Percentage by which `after` is less than `before`."""
    return "unknown" if before <= 0 else f"{100 * (1 - after / before):.0f} %"
