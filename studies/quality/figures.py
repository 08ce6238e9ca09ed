"""The figures of studies/results/quality.md: retained accuracy against tokens, and the paper's Figures 2, 3 and 4."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from .probes import RANKINGS
from .settings import NAMES, RETENTIONS, SHALLOW, named

if TYPE_CHECKING:
    from .document import Page

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LABELS = {
    "cls": "[CLS] attention",
    "key_norm_smallest": "smallest key norms",
    "key_norm_largest": "largest key norms",
    "attention": "attention of the last token",
    "random": "random",
}


def draw(page: "Page", folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("methods", methods), ("figure2", figure2), ("figure3", figure3), ("figure4", figure4)):
        drawn = figure(page)
        # No date or version in the file: the same results give the same bytes.
        drawn.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        plt.close(drawn)


def methods(page: "Page") -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 4))
    shown = {**NAMES, "tuned": "ViTCoP, tuned", "random": "random, ViTCoP's schedule"}
    for method, label in shown.items():
        others = {"random": "original-vitcop-{}-random", "tuned": "tuned-{}"}
        names = [others[method].format(b) if method in others else named(method, b, True) for b in RETENTIONS]
        names = [name for name in names if name in page.results]
        found = [page.retained(name) for name in names]
        tokens = [page.results.found[name]["tokens"] for name in names]
        values = 100 * np.array([x.value for x in found])
        bars = 100 * np.array([[x.value - x.low for x in found], [x.high - x.value for x in found]])
        style = {"vitcop": "o-", "tuned": "s-", "random": "x:"}.get(method, ".--")
        axes.errorbar(tokens, values, bars, fmt=style, capsize=2, label=label, linewidth=1.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks([196 * share for share in RETENTIONS.values()], [f"{b} %" for b in RETENTIONS])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens of a layer, true average (log scale)")
    axes.set_ylabel("retained accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def curves(page: "Page", axes: Any, rankings: dict[str, int]) -> None:
    for ranking, layer in rankings.items():
        prefix = f"ranking-{ranking}-{layer}-"
        shares = sorted(int(name.removeprefix(prefix)) for name in page.results.found if name.startswith(prefix))
        found = [page.retained(f"{prefix}{share}") for share in shares]
        values = 100 * np.array([x.value for x in found])
        bars = 100 * np.array([[x.value - x.low for x in found], [x.high - x.value for x in found]])
        axes.errorbar(shares, values, bars, fmt="o-", capsize=2, markersize=3, label=LABELS[ranking])
    axes.set_xlabel("tokens kept, %")
    axes.set_ylabel("retained accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def figure2(page: "Page") -> Any:
    looks = page.results.looks
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    left.plot([0, *looks["shares"]], [0, *(100 * m for m in looks["cls_mass"])], "o-", markersize=3)
    left.plot([0, 100], [0, 100], ":", color="grey")
    left.set_xlabel("tokens, by [CLS] attention, %")
    left.set_ylabel("of [CLS] attention, %")
    left.grid(alpha=0.3)
    curves(page, right, {"cls": 0, "random": 0})
    left.set_title("(a) [CLS] attention is concentrated", fontsize=9)
    right.set_title("(b) kept before the decoder", fontsize=9)
    return figure


def figure3(page: "Page") -> Any:
    looks = page.results.looks
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    layers = np.arange(len(looks["correlation"]))
    low, high = np.array(looks["correlation_quartiles"]).T
    middle = np.array(looks["correlation"])
    left.fill_between(layers, low, high, alpha=0.3, label="quartiles of questions")
    left.plot(layers, middle, "o-", markersize=3, label="mean")
    left.axhline(0, color="grey", linewidth=0.8)
    left.set_xlabel("decoder layer")
    left.set_ylabel("rank correlation")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    left.set_title("(a) key norm against the last token's attention", fontsize=9)
    curves(page, right, {name: SHALLOW for name in RANKINGS if name != "cls"})
    right.set_title(f"(b) kept before layer {SHALLOW}", fontsize=9)
    return figure


def figure4(page: "Page") -> Any:
    looks = page.results.looks
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(2, 1))
    shown = np.array(looks["heatmap"])[:, :60]
    image = left.imshow(100 * shown, aspect="auto", cmap="magma", norm=matplotlib.colors.LogNorm(vmin=0.05))
    figure.colorbar(image, ax=left, label="of the attention on visual tokens, %")
    left.set_xlabel("visual tokens, the most attended first")
    left.set_ylabel("decoder layer")
    left.set_title("(a) how attention spreads over visual tokens", fontsize=9)
    right.plot(100 * np.array(looks["visual_share"]), np.arange(len(shown)), "o-", markersize=3)
    right.invert_yaxis()
    right.set_xlabel("of the last token's attention, %")
    right.set_title("(b) share of the picture", fontsize=9)
    right.grid(alpha=0.3)
    return figure
