"""Fused kernels for visual token pruning, as torch custom ops.

Every function here is a thin door to `torch.ops.vitcop.<name>`. `torch.ops.vitcop_reference.<name>` is the same op in
plain PyTorch, on any device and in float64: what the kernels are tested against.
"""

import os

from . import ops
from .ops import *  # noqa: F403

__all__ = [*ops.__all__, "native_error"]

native_error: str | None = None
"""Why the native kernels are not in use, or None when they are."""

if os.environ.get("VITCOP_NATIVE", "1") == "0":
    native_error = "switched off by VITCOP_NATIVE=0"
else:
    try:
        import vitcop_kernels._C  # noqa: F401  (importing it registers the native kernels)
    except ImportError as error:
        native_error = f"not built, or built for another torch: {error}"
