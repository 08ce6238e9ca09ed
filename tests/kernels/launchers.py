"""Calling a Triton launcher, always compared on the CPU.

The same tests run in three ways: on a GPU where there is one; in Triton's interpreter; and with
`-p verification.ptx.plugin`, compiled, in the emulator.
"""

import importlib
import sys
from typing import Any

import torch
import triton
from support import assert_same_bits, reference, strides, tensors
from torch import Tensor
from torch.utils._pytree import tree_map_only

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu" and triton.knobs.runtime.interpret
EMULATED = DEVICE == "cpu" and not INTERPRETED


def emulator() -> Any:
    """The emulator's driver, which its pytest plugin has loaded: no test imports another folder."""
    return sys.modules["verification.ptx.driver"]


def kernel_of(op: str) -> Any:
    return importlib.import_module(f"vitcop_kernels.ops.{op}.kernel")


def to_device(value: Any) -> Any:
    """Moved to the device with its strides."""
    if isinstance(value, list):
        return [to_device(v) for v in value]
    if not isinstance(value, Tensor) or value.device.type == DEVICE:
        return value
    room = (
        1 + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
        if value.numel()
        else 0
    )
    storage = value.as_strided((room,), (1,)).to(DEVICE)
    return storage.as_strided(value.shape, value.stride())


def launch(op: str, *args: Any, repeat: bool = False, **kwargs: Any) -> Any:
    """What the launcher returns, on the CPU; inputs must come out unchanged, and with `repeat` the same bits twice."""
    on_device = [to_device(a) for a in args]
    kept = tree_map_only(Tensor, torch.clone, on_device)  # companions come in a list
    launcher = getattr(kernel_of(op), op)
    got = launcher(*on_device, **kwargs)
    if repeat:
        assert_same_bits(launcher(*on_device, **kwargs), got, f"{op}, second run:")
    assert_same_bits(on_device, kept, f"{op} changed an input:")
    return got.cpu() if isinstance(got, Tensor) else tuple(t.cpu() for t in tensors(got))


def both(op: str, *args: Any, repeat: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """(the kernel's answer, the float64 reference's), with shapes, dtypes and strides compared."""
    got, want = launch(op, *args, repeat=repeat, **kwargs), reference(op, *args, **kwargs)
    for a, b in zip(tensors(got), tensors(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert strides(a) == strides(b), f"{op}: strides {a.stride()} and {b.stride()}"
    return got, want


def assert_exact(op: str, *args: Any, **kwargs: Any) -> Any:
    got, want = both(op, *args, **kwargs)
    for k, (a, b) in enumerate(zip(tensors(got), tensors(want), strict=True)):
        assert torch.equal(a, b), f"{op} output {k}: {a.tolist()} instead of {b.tolist()}"
    return got


def assert_batch_invariant(op: str, batched: list[Tensor], *shared: Any, **kwargs: Any) -> None:
    """A sample alone and the same sample in a batch: the same bits."""
    whole = tensors(launch(op, *batched, *shared, **kwargs))
    for b in range(batched[0].shape[0]):
        alone = tensors(launch(op, *(t[b] for t in batched), *shared, **kwargs))
        assert_same_bits(alone, [t[b] for t in whole], f"{op}, sample {b} alone:")
