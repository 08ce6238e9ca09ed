"""The order of scores that every op shares: NaN is worst, ties go to the lower index."""

import torch
from torch import Tensor


def argsort_best_first(scores: Tensor, largest: bool = False) -> Tensor:
    """Indices along the last dimension from best to worst; the smallest is best unless `largest`.

    NaN comes after everything, +-inf included; -0.0 ties with 0.0; ties keep index order.
    """
    nan = scores.isnan()
    key = torch.where(nan, torch.zeros_like(scores), -scores if largest else scores)
    order = torch.argsort(key + 0.0, dim=-1, stable=True)
    # A second stable sort by the NaN flag, so that a NaN never ties with a real infinity.
    return order.gather(-1, torch.argsort(nan.gather(-1, order).to(torch.uint8), dim=-1, stable=True))


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of scores, norms, densities and distances: float32, or float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32
