"""Pictures with known contents: handwritten digits and coloured shapes on real photographs, among unasked clutter.

Digits are scikit-learn's (UCI, real handwriting), photographs come with scikit-image and scikit-learn. Each split has
digits, photographs and seeds of its own.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE, PATCH = 112, 8
GRID = SIDE // PATCH
CELLS = 3  # things stand in a grid of CELLS x CELLS places
COLORS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 255),
    "yellow": (240, 220, 40),
    "purple": (200, 60, 220),
    "cyan": (40, 220, 220),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
KINDS = (*map(str, range(10)), *SHAPES)
SIZES = (20, 23, 26, 29, 32)  # pixels
SPLITS = ("train", "validation", "test")
PHOTOGRAPHS = {
    "train": (
        "coffee.png",
        "astronaut.png",
        "motorcycle_left.png",
        "rocket.jpg",
        "brick.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "camera.png",
        "retina.jpg",
        "china.jpg",
    ),
    "validation": ("coins.png", "page.png"),
    "test": ("chelsea.png", "gravel.png", "flower.jpg"),
}
WRITERS = {"train": slice(0, 1200), "validation": slice(1200, 1400), "test": slice(1400, None)}
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Thing:
    kind: int  # of KINDS
    color: int  # of COLORS
    row: int
    col: int


@dataclass(frozen=True)
class Picture:
    pixels: NDArray[np.uint8]  # [SIDE, SIDE, 3]
    things: list[Thing]  # in raster order; no two have both kind and colour in common
    patch_kind: NDArray[np.int64]  # [GRID * GRID] 1 + kind of the thing that covers most of a patch, 0: none
    patch_color: NDArray[np.int64]


@dataclass(frozen=True)
class Gallery:
    """What the pictures of one split are made of."""

    photographs: list[Image]  # [h, w, 3] in 0..255
    masks: dict[tuple[int, int], Sequence[Image]]  # by kind and size: [size, size] in 0..1


@functools.cache
def gallery(split: str) -> Gallery:
    import skimage.data
    import skimage.io
    import skimage.transform
    from sklearn.datasets import load_digits, load_sample_images

    folder = Path(skimage.data.__file__).parent
    samples = load_sample_images()
    by_name = {Path(name).name: image for name, image in zip(samples.filenames, samples.images, strict=True)}
    photographs = []
    for name in PHOTOGRAPHS[split]:
        image = by_name[name] if name in by_name else skimage.io.imread(folder / name)
        image = np.stack([image] * 3, axis=-1) if image.ndim == 2 else image[..., :3]
        for short in (150, 260):  # two scales
            shape = [round(n * short / min(image.shape[:2])) for n in image.shape[:2]]
            photographs.append((skimage.transform.resize(image, shape, anti_aliasing=True) * 255).astype(np.float32))

    digits = load_digits()
    written, kinds = digits.images[WRITERS[split]] / 16, digits.target[WRITERS[split]]
    masks: dict[tuple[int, int], Sequence[Image]] = {}
    for size in SIZES:
        for kind in range(10):
            scaled = [skimage.transform.resize(x, (size, size), order=1) for x in written[kinds == kind]]
            masks[kind, size] = [np.clip(1.4 * x, 0, 1).astype(np.float32) for x in scaled]
        for number, mask in enumerate(shape_masks(size)):
            masks[10 + number, size] = [mask]
    return Gallery(photographs, masks)


def shape_masks(size: int, oversampling: int = 4) -> list[Image]:
    """Coverage `[size, size]` of each of SHAPES."""
    y, x = (np.mgrid[: size * oversampling, : size * oversampling] + 0.5) / (size * oversampling) * 2 - 1
    radius = np.hypot(x, y)
    inside = [
        radius < 0.95,
        (abs(x) < 0.82) & (abs(y) < 0.82),
        (y < 0.85) & (y > -0.9) & (abs(x) < (y + 0.9) / 1.75 * 0.95),
        abs(x) + abs(y) < 0.98,
        ((abs(x) < 0.3) | (abs(y) < 0.3)) & (radius < 1.1),
        (radius < 0.95) & (radius > 0.55),
    ]
    split = size, oversampling, size, oversampling
    return [mask.reshape(split).mean((1, 3)).astype(np.float32) for mask in inside]


def compose(rng: random.Random, split: str) -> Picture:
    """One picture of 4 to 8 things."""
    material = gallery(split)
    canvas = background(rng, material.photographs)
    clutter(rng, canvas)
    colors = np.array(list(COLORS.values()), np.float32)
    cell = SIDE / CELLS
    covered = np.zeros((GRID, GRID), np.float32)
    patch_kind, patch_color = np.zeros((2, GRID, GRID), np.int64)
    things = []
    for place in sorted(rng.sample(range(CELLS * CELLS), rng.randint(4, 8))):
        kind, color = draw_thing(rng, things)
        row, col = divmod(place, CELLS)
        size = rng.choice(SIZES)
        top, left = (int(i * cell + rng.uniform(0, cell - size - 1)) for i in (row, col))
        mask = rng.choice(material.masks[kind, size])
        shade = colors[color] * rng.uniform(0.8, 1.0)
        box = canvas[top : top + size, left : left + size]
        box += mask[..., None] * (shade - box)
        full = np.zeros((SIDE, SIDE), np.float32)
        full[top : top + size, left : left + size] = mask
        cover = full.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
        mine = (cover > 0.08) & (cover > covered)
        covered[mine], patch_kind[mine], patch_color[mine] = cover[mine], kind + 1, color + 1
        things.append(Thing(kind, color, row, col))
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    return Picture(pixels, things, patch_kind.reshape(-1), patch_color.reshape(-1))


def draw_thing(rng: random.Random, things: Sequence[Thing]) -> tuple[int, int]:
    """A kind and a colour, often one that is there already, never both of one thing."""
    while True:
        kind = rng.randrange(10) if rng.random() < 0.5 else rng.randrange(10, len(KINDS))
        color = rng.randrange(len(COLORS))
        if things and rng.random() < 0.25:
            kind = rng.choice(things).kind
        if things and rng.random() < 0.2:
            color = rng.choice(things).color
        if all((thing.kind, thing.color) != (kind, color) for thing in things):
            return kind, color


def background(rng: random.Random, photographs: Sequence[Image]) -> Image:
    """A darkened crop, so that the colours of things are told apart from it."""
    photograph = rng.choice(photographs)
    top, left = (rng.randrange(n - SIDE + 1) for n in photograph.shape[:2])
    crop = photograph[top : top + SIDE, left : left + SIDE] * rng.uniform(0.25, 0.7)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.4:
        crop = crop.mean(-1, keepdims=True).repeat(3, -1)
    return crop.copy()


def clutter(rng: random.Random, canvas: Image) -> None:
    """Grey bars and blots that nobody asks about."""
    for _ in range(rng.randint(2, 5)):
        height, width = rng.choice([(3, 30), (30, 3), (10, 10), (14, 6), (6, 14)])
        top, left = rng.randrange(SIDE - height), rng.randrange(SIDE - width)
        box = canvas[top : top + height, left : left + width]
        box += 0.7 * (rng.uniform(30, 150) - box)
