"""How many programs of a compiled kernel a device holds at once, from its driver."""

import ctypes
import functools
from typing import Any

import torch

from vitcop_kernels._triton import is_hip, multiprocessors

COOPERATIVE_LAUNCH = 95  # CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH
NAMES = {
    False: ("libcuda.so.1", "cuOccupancyMaxActiveBlocksPerMultiprocessor"),
    True: ("libamdhip64.so", "hipModuleOccupancyMaxActiveBlocksPerMultiprocessor"),
}


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(NAMES[is_hip()][0])


@functools.cache
def launches_together(device: int) -> bool:
    """Whether the device has cooperative launches (HIP refuses by itself where it has none)."""
    if is_hip():
        return True
    value, handle = ctypes.c_int(0), ctypes.c_int(0)
    failed = _driver().cuDeviceGet(ctypes.byref(handle), device)
    failed = failed or _driver().cuDeviceGetAttribute(ctypes.byref(value), COOPERATIVE_LAUNCH, handle)
    return not failed and value.value == 1


def resident_programs(compiled: Any, num_warps: int, device: int) -> int:
    """Programs of a compiled Triton kernel that run at the same time; 0 if the driver does not say."""
    if not launches_together(device):
        return 0
    compiled._init_handles()
    blocks = ctypes.c_int(0)
    threads = num_warps * torch.cuda.get_device_properties(device).warp_size
    ask = getattr(_driver(), NAMES[is_hip()][1])
    failed = ask(
        ctypes.byref(blocks), ctypes.c_void_p(compiled.function), threads, ctypes.c_size_t(compiled.metadata.shared)
    )
    return 0 if failed else blocks.value * multiprocessors(device)
