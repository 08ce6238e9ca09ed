"""A driver for Triton whose device is the emulator: unmodified launch code runs on CPU tensors.

    from verification.ptx import driver
    driver.install(capability=90)       # before any kernel is launched, in a process without TRITON_INTERPRET
    driver.config.seed = 3              # what the next launches do
    driver.log                          # one Launch a launch: counters and findings

Allocations are the storages of the tensors that the launch gets.
"""

import ctypes
import json
import os
import time
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.backends.nvidia.compiler import CUDABackend

from . import build, memory
from .library import U32, Allocation, Module, Span, load
from .library import Config as RawConfig

triton.knobs.runtime.interpret = False
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}  # bytes a program may use
PROCESSORS = 132


@dataclass
class Config:
    """What launches do. All checkers are on by default."""

    seed: int = 1  # of the order of warps, CTAs and lanes of an atomic; 0: CTAs and lanes in order
    initcheck: bool = True
    racecheck: bool = True
    spancheck: bool = True  # accesses stay inside the tensors (views) that the pointer came from
    counters: bool = False
    resident: int = 3  # CTAs at the same time, of a launch that is not cooperative
    max_budget: int = 300  # instructions of a warp before another one may run
    mma_mode: int = 0  # 1: truncating tensor cores
    approx_noise: int = 0  # not 0: ex2.approx and its like are off by an ulp here and there
    poison: bool = True
    lane_order: int = 0  # of lanes that store to one address stays 0: the highest, 1: the lowest, 2: either, by chance
    skip_ctas: int = 0
    max_instructions: int = 3_000_000_000
    tolerate: tuple[str, ...] = ()  # kinds of findings that are logged, but raise nothing
    vary_seed: bool = True  # every launch takes another seed


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hardware": {"mma_mode": 1, "approx_noise": 7},
    "lanes": {"lane_order": 2},
}


@dataclass
class Launch:
    kernel: str
    grid: tuple[int, ...]
    warps: int
    shared: int
    cooperative: bool
    seconds: float
    result: dict[str, Any] = field(repr=False)

    @property
    def findings(self) -> list[str]:
        fatal = [self.result["fatal"]] if self.result["fatal"] else []
        return fatal + [f"{count} x {what}" for count, what in self.result["reports"]]


config = Config()
log: list[Launch] = []
_launches = 0
_capability = 90


class EmulatorError(RuntimeError):
    """A launch that was stopped, or that has findings which are not tolerated."""


_modules: dict[bytes, Module] = {}
_numbered: list[Module] = []


def _flat(args: Any, signature: list[Any]) -> list[tuple[str, Any]]:
    found = []
    for kind, value in zip(signature, args, strict=True):
        if isinstance(kind, tuple):
            found += _flat(value, list(kind))
        elif kind != "constexpr":
            found.append((kind, value))
    return found


_PACK = {
    **{f"i{n}": np.dtype(f"int{n}").type for n in (8, 16, 32, 64)},
    **{f"u{n}": np.dtype(f"uint{n}").type for n in (8, 16, 32, 64)},
    **{"i1": np.int8, "u1": np.uint8, "fp16": np.float16, "fp32": np.float32, "f32": np.float32, "fp64": np.float64},
}


def _span(t: torch.Tensor) -> tuple[int, int]:
    """First and last byte that the view's elements have."""
    if t.numel() == 0:
        return t.data_ptr(), t.data_ptr()
    steps = [(n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)]
    low, high = sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps)
    return t.data_ptr() + low * t.element_size(), t.data_ptr() + (high + 1) * t.element_size()


class _Parameters:
    """The parameter block of a launch, and the memory that its pointers lead to."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.block = bytearray(max(module.nbytes, 1))
        self.allocations: dict[int, Allocation] = {}
        self.spans: list[tuple[int, int, int]] = []
        self.stores: list[memory.Store] = []

    def put(self, k: int, raw: bytes) -> None:
        offset, size = self.module.params[k]
        assert len(raw) == size, (k, len(raw), size)
        self.block[offset : offset + size] = raw

    def tensor(self, k: int, t: torch.Tensor) -> None:
        self.put(k, t.data_ptr().to_bytes(8, "little"))
        storage = t.untyped_storage()
        base = storage.data_ptr()
        if base and base not in self.allocations:
            store = memory.store_at(base)
            written = 0
            if store is not None:
                store.refresh()
                self.stores.append(store)
                written = store.written.ctypes.data
            self.allocations[base] = Allocation(base, storage.nbytes(), store is not None, 0, written, k)
        self.spans.append((k, *_span(t)))

    def argument(self, k: int, kind: str, value: Any) -> None:
        if kind.startswith("*"):
            if isinstance(value, torch.Tensor):
                self.tensor(k, value)
            else:
                self.put(k, (0 if value is None else value.data_ptr()).to_bytes(8, "little"))
        elif kind == "bf16":
            self.put(k, torch.tensor(value, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes())
        else:
            self.put(k, np.array(value).astype(_PACK[kind]).tobytes())


class Launcher:
    def __init__(self, src: Any, metadata: Any) -> None:
        self.signature = list(src.signature.values())
        self.metadata = metadata

    def __call__(self, gx, gy, gz, stream, function, packed, launch_metadata, enter, leave, *args) -> None:  # type: ignore[no-untyped-def]
        module = _numbered[function]
        warps, _, shared = packed
        values = _flat(args, self.signature)
        parameters = _Parameters(module)
        for k, (kind, value) in enumerate(values):
            parameters.argument(k, kind, value)
        sizes = [getattr(self.metadata, f"{name}_scratch_size", 0) for name in ("global", "profile")]
        scratch = [torch.zeros(size * gx * gy * gz, dtype=torch.uint8) for size in sizes if size]
        for n, t in enumerate(scratch):
            parameters.tensor(len(values) + n, t)
        cooperative = bool(getattr(self.metadata, "launch_cooperative_grid", False))
        entry = _run(self.metadata.name, parameters, (gx, gy, gz), warps, shared, cooperative)
        log.append(entry)
        grave = [entry.result["fatal"]] if entry.result["fatal"] else []
        tolerated = config.tolerate or ("\0",)
        grave += [f"{n} x {what}" for n, what in entry.result["reports"] if not what.startswith(tolerated)]
        if grave:
            raise EmulatorError(f"{entry.kernel} {entry.grid}: " + "\n".join(grave[:8]))


def _run(
    name: str, parameters: _Parameters, grid: tuple[int, int, int], warps: int, shared: int, cooperative: bool
) -> Launch:
    global _launches
    c, allocations, spans = config, parameters.allocations, parameters.spans
    seed = (c.seed + (_launches * 7919 if c.vary_seed else 0)) & 0xFFFFFFFF if c.seed else 0
    _launches += 1
    raw = RawConfig(
        *(seed, 1, c.initcheck, c.racecheck, c.spancheck, c.counters, c.resident, c.max_budget, c.mma_mode),
        *(c.approx_noise, c.poison, c.lane_order, c.skip_ctas, c.max_instructions),
    )
    start, lib = time.perf_counter(), load()
    text = lib.emu_launch(
        parameters.module.handle,
        (U32 * 3)(*grid),
        warps * 32,
        shared,
        cooperative,
        bytes(parameters.block),
        ctypes.byref(raw),
        (Allocation * max(1, len(allocations)))(*allocations.values()),
        len(allocations),
        (Span * max(1, len(spans)))(*((low, high) for _, low, high in spans)),
        (U32 * max(1, len(spans)))(*(k for k, _, _ in spans)),
        len(spans),
    )
    seconds = time.perf_counter() - start
    result = json.loads(ctypes.string_at(text).decode("utf-8", "replace"))
    lib.emu_free(text)
    for store in parameters.stores:
        if store.redzone_broken():
            result["reports"].append([1, "redzone of a torch.empty overwritten"])
    return Launch(name, grid, warps, shared, cooperative, seconds, result)


class _Utils:
    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, int, int, int, int]:
        if kernel not in _modules:
            _modules[kernel] = Module(kernel)
        _numbered.append(_modules[kernel])
        return _modules[kernel], len(_numbered) - 1, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        rates = dict.fromkeys(("sm_clock_rate", "mem_clock_rate", "mem_bus_width"), 1)
        facts = {"multiprocessor_count": PROCESSORS, "warpSize": 32, "max_num_regs": 65536}
        return {"max_shared_mem": SHARED[_capability], **facts, **rates}


class EmulatorDriver(GPUDriver):
    def __init__(self) -> None:
        self.utils = _Utils()
        self.launcher_cls = Launcher
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: divmod(_capability, 10)

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", _capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


@contextmanager
def _nothing(*_: Any):  # type: ignore[no-untyped-def]
    yield


def install(capability: int = 90, empty: bool = True) -> None:
    """Triton's driver becomes the emulator; torch.cuda answers what launch code asks of it.

    `empty`: torch.empty gives memory whose reads before writes are noticed.
    """
    global _capability
    _capability = capability
    # The "binary" is the PTX. Triton's cache does not know: it gets a folder of its own.
    CUDABackend.make_cubin = lambda self, src, metadata, opt, capability: src.encode()
    triton.knobs.cache.dir = os.environ.get("TRITON_CACHE_DIR", str(build.CACHE / "triton"))
    triton.runtime.driver.set_active(EmulatorDriver())
    major, minor = divmod(capability, 10)
    properties = types.SimpleNamespace(
        multi_processor_count=PROCESSORS,
        warp_size=32,
        major=major,
        minor=minor,
        name="emulator",
        shared_memory_per_block_optin=SHARED[capability],
        total_memory=80 << 30,
        max_threads_per_multi_processor=2048,
        L2_cache_size=50 << 20,
        regs_per_multiprocessor=65536,
    )
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.get_device_capability = lambda device=None: (major, minor)
    torch.cuda.device_of = _nothing
    torch.cuda.device = _nothing
    torch.cuda.current_device = lambda: 0
    torch.cuda.synchronize = lambda device=None: None
    if empty:
        memory.patch()


def capability() -> int:
    return _capability
