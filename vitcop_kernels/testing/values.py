"""Numbers with a name: what tokens, scores and widths of them may hold."""

import numpy as np
import torch
from torch import Tensor

from .draw import Draw

PLAIN = ("gaussian", "whole numbers", "duplicates", "near duplicates at 1 ulp", "all equal", "zeros of both signs")
RANGE = ("huge", "tiny and subnormal", "mixed scales", "common offset")
BROKEN = ("NaN", "Inf", "NaN and Inf")
STRUCTURES = (*PLAIN, *RANGE, *BROKEN)

# Powers of two: (smallest, largest) of "mixed scales", of "huge" and of "tiny and subnormal". float64 keeps away from
# values whose squares leave its range: there the references are the only implementation, and compute in float64.
SCALES = {
    torch.float32: ((-60, 60), (100, 127), (-149, -120)),
    torch.bfloat16: ((-60, 60), (100, 127), (-133, -120)),
    torch.float16: ((-12, 8), (12, 15), (-24, -13)),
    torch.float64: ((-60, 60), (100, 127), (-149, -120)),
}
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def rows(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, structure: str, top: int = 127) -> Tensor:
    """[..., N, D]: the tokens are the rows. "huge" stays below 2^top."""
    n = shape[-2] if len(shape) > 1 else 1
    x = draw.normal(*shape)
    if structure == "whole numbers":
        reach = draw.pick([1, 2, 3])
        x = draw.integers(-reach, reach, shape)
    elif structure in ("duplicates", "near duplicates at 1 ulp"):
        few = max(1, n // draw.pick([2, 4, 16]))
        if len(shape) > 1:
            x = np.take(x, draw.integers(0, few - 1, (n,)), axis=-2)
    elif structure == "all equal":
        x = np.broadcast_to(x[..., :1, :], shape) if 0 not in shape else x
    elif structure == "zeros of both signs":
        x = np.where(draw.normal(*shape) < 1.5, 0.0, x) * np.sign(draw.normal(*shape))
    elif structure == "common offset":
        x = x + draw.pick([10.0, 200.0])
    elif structure == "mixed scales":
        low, high = SCALES[dtype][0]
        x = x * 2.0 ** draw.integers(low, high, (*shape[:-1], 1))
    elif structure == "huge":
        low, high = SCALES[dtype][1]
        x = np.clip(x, -1.9, 1.9) * 2.0 ** min(top, draw.integer(low, high))
        x = np.clip(x, -torch.finfo(dtype).max, torch.finfo(dtype).max)
    elif structure == "tiny and subnormal":
        low, high = SCALES[dtype][2]
        x = x * 2.0 ** draw.integer(low, high)
    t = torch.from_numpy(np.array(x, dtype=np.float64, order="C")).to(dtype)
    if structure == "near duplicates at 1 ulp":
        step = torch.from_numpy(draw.integers(-1, 1, shape)).to(INTEGERS[dtype.itemsize])
        t = torch.where(t != 0, (t.view(step.dtype) + step).view(dtype), t)
    if structure in BROKEN:
        bad = {"NaN": [np.nan], "Inf": [np.inf, -np.inf], "NaN and Inf": [np.nan, np.inf, -np.inf]}[structure]
        share = draw.pick([0.02, 0.2, 1.0]) / max(1, shape[-1] if len(shape) > 1 else 1)
        where = torch.from_numpy(draw.rng.random(shape) < share)
        t = torch.where(where, torch.from_numpy(draw.rng.choice(bad, shape)).to(dtype), t)
    return t


def scores(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, structure: str) -> Tensor:
    """[..., N]: one number for each token, ties by the structure."""
    return rows(draw, (*shape, 1), dtype, structure)[..., 0]


def best_first(values: np.ndarray, largest: bool) -> np.ndarray:
    """Indices from best to worst: NaN last, ties (also of zeros of both signs) by lower index."""
    nan = np.isnan(values)
    key = np.where(nan, 0.0, -values if largest else values)
    return np.lexsort((np.arange(len(values)), key, nan))
