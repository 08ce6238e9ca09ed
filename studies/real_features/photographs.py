"""Pictures that come with scikit-image and scikit-learn: photographs, and some that are hard on a clustering."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitcop.images import open_image

SIDE = 336  # pixels: 24 x 24 patches of 14, as many tokens as LLaVA-1.5 has
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "coins.png",
    "flower.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
HARD = (  # textures and flat areas
    "brick.png",
    "grass.png",
    "gravel.png",
    "horse.png",
    "hubble_deep_field.jpg",
    "page.png",
)


def title(name: str) -> str:
    return Path(name).stem.replace("_", " ")


@functools.cache
def _folders() -> tuple[Path, ...]:
    import skimage.data
    import sklearn.datasets

    return Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"


def load(name: str, side: int = SIDE) -> Tensor:
    """The middle square of a picture, `[1, 3, side, side]` in [0, 1]."""
    from PIL import Image

    path = next(folder / name for folder in _folders() if (folder / name).exists())
    picture = open_image(path)
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    box = (left, top, left + short, top + short)
    picture = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None]
