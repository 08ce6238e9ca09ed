"""studies/results/real-features.png: [CLS] attention, key norms and clusters on photographs. Needs matplotlib."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitcop_kernels as ops
from vitcop.images import open_image
from vitcop.visualize import TABLEAU, Grid

from .measure import D_C, PRESETS, TAU, Tokens, cluster, kept, saliency_of, tokens_of
from .photographs import load, title
from .vit import VisionTransformer

SHOWN = ("astronaut.png", "chelsea.png", "coffee.png", "camera.png", "rocket.jpg")  # all CC0 or in the public domain
OTHERS = "#6e7781"  # clusters that have no colour of their own
LIMIT = 400_000  # bytes


def save(path: Path, model: VisionTransformer) -> None:
    """Write one row of panels per photograph, as PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    retention, (share, alpha) = list(PRESETS.items())[-1]
    panels: dict[str, Callable[[Any, Grid, Tokens], None]] = {
        "photograph": lambda axis, grid, tokens: axis.imshow(grid.photo),
        "[CLS] attention": lambda axis, grid, tokens: _map(axis, tokens, saliency_of(tokens).log()),
        "key norm": lambda axis, grid, tokens: _map(axis, tokens, ops.key_norms(tokens.key)[1:]),
        f"clusters of all tokens,\n\N{GREEK SMALL LETTER ALPHA} = {alpha:g}": lambda axis, grid, tokens: _clusters(
            axis, grid, tokens, torch.arange(tokens.side**2), alpha
        ),
        f"clusters of Stage I's {share:.0%},\nretention {retention}": lambda axis, grid, tokens: _clusters(
            axis, grid, tokens, kept(saliency_of(tokens), share), alpha
        ),
    }
    figure, axes = plt.subplots(len(SHOWN), len(panels), figsize=(9.6, 9.9), layout="constrained", dpi=100)
    for row, name in zip(axes, SHOWN, strict=True):
        picture = load(name)
        tokens = tokens_of(model, picture)[-2]
        grid = Grid(picture[0].permute(1, 2, 0).numpy(), tokens.side)
        for axis, (heading, draw) in zip(row, panels.items(), strict=True):
            draw(axis, grid, tokens)
            axis.set(xticks=[], yticks=[])
            if name == SHOWN[0]:
                axis.set_title(heading, fontsize=9)
        row[0].set_ylabel(title(name), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    image = open_image(buffer)  # a palette takes half of the bytes
    image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    if path.stat().st_size > LIMIT:
        raise SystemExit(f"{path}: {path.stat().st_size} bytes, more than {LIMIT}")


def _map(axis: Any, tokens: Tokens, values: Tensor) -> None:
    axis.imshow(values.reshape(tokens.side, tokens.side).numpy(), cmap="magma", interpolation="nearest")


def _clusters(axis: Any, grid: Grid, tokens: Tokens, index: Tensor, alpha: float) -> None:
    """The ten largest clusters in colours, the others grey, dots at the centres; what is not clustered fades."""
    labels, centers, *_ = cluster(
        tokens.features[index], tokens.positions[index], D_C, TAU, ops.num_centers_for(alpha, len(index))
    )
    largest = torch.bincount(labels).argsort(descending=True, stable=True)[: len(TABLEAU)].tolist()
    colours = dict(zip(largest, TABLEAU, strict=False))
    painted = {token: colours.get(label, OTHERS) for token, label in zip(index.tolist(), labels.tolist(), strict=True)}
    extent = (0, grid.side, grid.side, 0)
    axis.imshow(grid.faded(index.tolist()), extent=extent)
    axis.imshow(grid.tint(painted, 0.62), extent=extent, interpolation="nearest")
    x, y = np.array([grid.middle(token) for token in index[centers].tolist()]).T
    axis.scatter(x, y, s=7, c="white", edgecolors="black", linewidths=0.6)
