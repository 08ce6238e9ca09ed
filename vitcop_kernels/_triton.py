"""What the Triton kernels share: launch helpers and facts about the device."""

import functools
from typing import Any

import torch
import triton

# The interpreter multiplies the bit patterns of bfloat16 in tl.dot: operands are widened there.
UPCAST: bool = triton.knobs.runtime.interpret

NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}


def next_power_of_2(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def is_hip() -> bool:
    return torch.version.hip is not None


def plain_options() -> dict[str, Any]:
    """Launch options pinned against defaults that change between Triton versions."""
    return {"enable_fp_fusion": True}


__all__ = ["NAMES", "UPCAST", "cdiv", "is_hip", "multiprocessors", "next_power_of_2", "plain_options", "triton"]
