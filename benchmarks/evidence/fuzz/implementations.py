"""Three independent implementations of every op: the reference, the C++ kernels, the Triton kernels interpreted."""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import vitcop_kernels

NAMES = ("reference", "native", "triton")


def implementation(name: str, op: str) -> Callable[..., Any]:
    """Called as the dispatcher calls an op: positional tensors, options by keyword."""
    if name == "triton":
        return _triton(op)
    if name == "native" and vitcop_kernels.native_error:
        raise RuntimeError(f"no native kernels: {vitcop_kernels.native_error}")
    return getattr(getattr(torch.ops, {"reference": "vitcop_reference", "native": "vitcop"}[name]), op)


@functools.cache
def _triton(op: str) -> Callable[..., Any]:
    if not torch.cuda.is_available():  # read by Triton when it is first imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    launcher = getattr(importlib.import_module(f"vitcop_kernels.ops.{op}.kernel"), op)

    @functools.wraps(launcher)
    def launch(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):  # the interpreter computes in numpy
            return launcher(*args, **kwargs)

    return launch
