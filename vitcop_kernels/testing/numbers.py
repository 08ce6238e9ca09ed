"""Rounding: what the bounds of the ops that compute numbers are made of.

`u` is half an ulp of what an implementation sums in: float32 for the contract's dtypes, float64 for float64. For
float64 the bounds are doubled, since this truth rounds as well.
"""

import numpy as np
import torch

from .verdicts import Array

TINY = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float64: 2.0**-1074}


def unit(dtype: torch.dtype) -> float:
    return 2.0**-52 if dtype == torch.float64 else 2.0**-24


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def scores_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm_of(keys: Array, heads: str) -> Array:
    """[..., H, N, d] -> [..., N]."""
    if heads == "mean":
        return np.sqrt((keys.mean(-3) ** 2).sum(-1))
    return np.sqrt((keys**2).sum((-3, -1)))
