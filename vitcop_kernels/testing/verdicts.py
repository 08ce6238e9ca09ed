"""Comparing an answer with the truth: exact, certified (inside the bound that the op states), or a mismatch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

KINDS = ("exact", "certified", "mismatch")
Array = NDArray[np.float64]


@dataclass
class Verdict:
    kind: str
    error: float = 0.0  # the largest, in units of the stated bound; indices have none
    why: str = ""


EXACT = Verdict("exact")


def mismatch(why: str, error: float = 0.0) -> Verdict:
    return Verdict("mismatch", error, why)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    found = list(verdicts) or [EXACT]
    top = max(found, key=lambda v: KINDS.index(v.kind))
    return Verdict(top.kind, max(v.error for v in found), top.why)


def double(t: Tensor) -> Array:
    return t.detach().to(torch.float64).numpy()


def form(name: str, got: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Verdict | None:
    if tuple(got.shape) != shape or got.dtype != dtype:
        return mismatch(f"{name}: {got.dtype} {tuple(got.shape)} instead of {dtype} {shape}")
    return None


def indices(name: str, got: Tensor, want: np.ndarray, dtype: torch.dtype = torch.int64) -> Verdict:
    """Exact or wrong."""
    if bad := form(name, got, want.shape, dtype):
        return bad
    differs = got.numpy() != want
    if differs.any():
        at = tuple(int(i) for i in np.argwhere(differs)[0])
        return mismatch(f"{name}{list(at)} is {got.numpy()[at]} instead of {want[at]}, {int(differs.sum())} differ")
    return EXACT


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # A clone, since "contiguous" leaves the strides of a single element, or of none, as they are.
    a, b = (t.detach().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def flat(value: Any) -> list[Tensor]:
    """All tensors of a result, those of lists in it too."""
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def same(a: Any, b: Any) -> bool:
    """Of results: every tensor bit for bit."""
    return all(same_bits(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def numbers(name: str, got: Tensor, want: Array, bound: Array | float, dtype: torch.dtype) -> Verdict:
    """Exact where each is the truth rounded to `dtype`; NaN and inf must be where the truth has them.

    A truth that within its bound leaves the dtype's range may be infinite, and one beyond it finite.
    """
    if bad := form(name, got, want.shape, dtype):
        return bad
    value = double(got)
    with np.errstate(all="ignore"):
        rounded = double(torch.from_numpy(np.asarray(want)).to(dtype))
        if np.array_equal(value, rounded, equal_nan=True):
            return EXACT
        bound = np.broadcast_to(np.asarray(bound, np.float64), want.shape)
        top = torch.finfo(dtype).max
        error = np.abs(value - want) / bound
        error = np.where((value == rounded) | (np.isnan(value) & np.isnan(want)), 0.0, error)
        overflow = np.isinf(value) & (np.sign(value) == np.sign(want)) & (np.abs(want) + bound >= top)
        error = np.where(overflow, 0.0, error)
        error = np.where(np.isnan(error), np.inf, error)
    most = float(error.max())
    if most <= 1:
        return Verdict("certified", most)
    at = np.unravel_index(int(error.argmax()), error.shape)
    what = f"{name}{[int(i) for i in at]} is {value[at]!r} instead of {want[at]!r}, bound {bound[at]:.3g}"
    return mismatch(f"{what}, {int((error > 1).sum())} beyond it", most)
