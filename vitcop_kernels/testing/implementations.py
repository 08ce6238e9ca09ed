"""Three independent implementations of every op: the reference, the C++ kernels, the Triton kernels.

Without a GPU Triton interprets its kernels; with one they run there, on copies of the arguments.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

import vitcop_kernels

NAMES = ("reference", "native", "triton")
TITLES = dict(reference="reference", native="C++", triton="Triton, interpreted")


def titles() -> dict[str, str]:
    """What a table calls them, here."""
    return TITLES | (dict(triton=f"Triton, {torch.cuda.get_device_name()}") if torch.cuda.is_available() else {})


def interpretable(args: Any) -> bool:
    """Triton's interpreter misreads bfloat16 below 2^-126, GPUs do not (tests/kernels/test_interpreter.py pins it)."""
    tiny = torch.finfo(torch.bfloat16).smallest_normal
    halves = [t for t in tree_flatten(args)[0] if isinstance(t, Tensor) and t.dtype == torch.bfloat16]
    return torch.cuda.is_available() or not any(bool(((t != 0) & (t.abs() < tiny)).any()) for t in halves)


def implementation(name: str, op: str) -> Callable[..., Any]:
    """Called as the dispatcher calls an op: positional tensors, options by keyword."""
    if name == "triton":
        return _triton(op)
    if name == "native" and vitcop_kernels.native_error:
        raise RuntimeError(f"no native kernels: {vitcop_kernels.native_error}")
    return getattr(getattr(torch.ops, {"reference": "vitcop_reference", "native": "vitcop"}[name]), op)


@functools.cache
def _triton(op: str) -> Callable[..., Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # read by Triton when it is first imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    launcher = getattr(importlib.import_module(f"vitcop_kernels.ops.{op}.kernel"), op)

    @functools.wraps(launcher)
    def launch(*args: Any, **kwargs: Any) -> Any:
        moved = tree_map_only(Tensor, lambda t: t.to(device), args)
        with np.errstate(all="ignore"):  # the interpreter computes in numpy
            return tree_map_only(Tensor, lambda t: t.cpu(), launcher(*moved, **kwargs))

    return launch
