"""The C interface of the emulator."""

import ctypes
import functools
from typing import Any

from .build import library as build

P, U32, U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64


class Config(ctypes.Structure):
    """Mirrors ptx::Config."""

    _fields_ = (
        *(
            (name, U32)
            for name in (
                "seed",
                "memcheck",
                "initcheck",
                "racecheck",
                "spancheck",
                "counters",
                "resident",
                "max_budget",
                "mma_mode",
                "approx_noise",
                "poison",
                "lane_order",
                "skip_ctas",
            )
        ),
        ("max_instructions", U64),
    )


class Allocation(ctypes.Structure):
    _fields_ = (("base", U64), ("size", U64), ("uninit", U32), ("pad", U32), ("written", U64), ("label", U64))


class Span(ctypes.Structure):
    _fields_ = (("low", U64), ("high", U64))


@functools.cache
def load() -> Any:
    lib = ctypes.CDLL(str(build()))
    lib.emu_load.restype, lib.emu_load.argtypes = P, [ctypes.c_char_p]
    for name in ("emu_module_error", "emu_bad", "emu_entry"):
        getattr(lib, name).restype, getattr(lib, name).argtypes = ctypes.c_char_p, [P]
    for name in ("emu_param_count", "emu_param_bytes", "emu_code_size"):
        getattr(lib, name).restype, getattr(lib, name).argtypes = U32, [P]
    for name in ("emu_param_offset", "emu_param_size"):
        getattr(lib, name).restype, getattr(lib, name).argtypes = U32, [P, U32]
    pointer = ctypes.POINTER
    lib.emu_launch.restype = P
    lib.emu_launch.argtypes = [
        *(P, pointer(U32), U32, U32, U32, ctypes.c_char_p, pointer(Config)),
        *(pointer(Allocation), U32, pointer(Span), pointer(U32), U32),
    ]
    lib.emu_free.argtypes = [P]
    return lib


class Module:
    """Parsed PTX. Raises ValueError where it cannot be parsed."""

    def __init__(self, ptx: bytes) -> None:
        lib = load()
        self.handle = lib.emu_load(ptx)
        problem = lib.emu_module_error(self.handle).decode()
        if problem:
            raise ValueError(problem)
        self.not_emulated = lib.emu_bad(self.handle).decode()  # an error only where they are reached
        count = lib.emu_param_count(self.handle)
        self.params = [(lib.emu_param_offset(self.handle, k), lib.emu_param_size(self.handle, k)) for k in range(count)]
        self.nbytes = lib.emu_param_bytes(self.handle)
