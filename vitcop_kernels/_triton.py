"""What the Triton kernels share: launch helpers and facts about the device."""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

# The interpreter multiplies the bit patterns of bfloat16 in tl.dot: operands are widened there.
UPCAST: bool = triton.knobs.runtime.interpret
_INTERPRETED = tl.constexpr(UPCAST)

NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}


@triton.jit
def widen(x):
    """To float32, exactly. (The interpreter loses subnormal bfloat16: there the bits are shifted by hand.)"""
    if _INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 to `dtype`, half to even. (The interpreter truncates to bfloat16: there the bits are rounded by hand.)"""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def product(x, y):
    """x * y of the shape of x, rounded before anything is added to it.

    With fp fusion a bare product inside a sum may become part of a lane's fma: the lanes that share the sum then differ
    by a rounding, and which of them is stored is undefined. Sums of products take this, unless the products are exact.
    """
    return tl.fma(x, tl.broadcast_to(y, x.shape), tl.zeros_like(x))


def next_power_of_2(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def is_hip() -> bool:
    return torch.version.hip is not None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch on the device of the first argument; an empty grid launches nothing."""
    if all(grid):
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **plain_options(options.get("num_warps", 4)), **options)


def plain_options(num_warps: int = 4) -> dict[str, Any]:
    """Launch options pinned against defaults that change between Triton versions, and the registers of a thread: with
    the limit named, ptxas takes what it needs; left alone it aims at more programs, and may spill."""
    registers = {} if is_hip() else {"maxnreg": min(255, 65536 // (32 * num_warps))}
    return {"enable_fp_fusion": True, **registers}


__all__ = [
    "NAMES",
    "UPCAST",
    "cdiv",
    "is_hip",
    "launch",
    "multiprocessors",
    "narrow",
    "next_power_of_2",
    "plain_options",
    "product",
    "triton",
    "widen",
]
