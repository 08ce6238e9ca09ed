"""The device under a GPU report: a GPU, or a CPU that pretends, so that every line can run without one.

Times are in microseconds.
"""

import contextlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..testing.verdicts import flat

Way = Callable[[], Any]
NVIDIA_SMI = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,driver_version,persistence_mode"
THROTTLED = ",clocks_event_reasons.active"  # which older drivers call otherwise


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "transformers", "numpy", "flash-kmeans"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {"cuda": torch.version.cuda, "hip": torch.version.hip}


class CudaDevice:
    dry_run = False

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        facts = torch.cuda.get_device_properties(self.device)
        self.name, self.sms, self.memory_bytes = facts.name, facts.multi_processor_count, facts.total_memory
        self.l2_bytes = getattr(facts, "L2_cache_size", 0) or 64 << 20
        self._scratch: Tensor | None = None

    def facts(self) -> dict[str, Any]:
        capability = ".".join(map(str, torch.cuda.get_device_capability(self.device)))
        return {
            "name": self.name,
            "kind": "gpu",
            "sms": self.sms,
            "memory_bytes": self.memory_bytes,
            "l2_bytes": self.l2_bytes,
            "capability": capability,
            "state": self.state(),
        }

    def state(self) -> dict[str, str]:
        """Clocks, power, temperature and driver, where nvidia-smi is there to say."""
        uuid = getattr(torch.cuda.get_device_properties(self.device), "uuid", None)
        which = str(self.device.index) if uuid is None else f"GPU-{uuid}"  # the index is one among the visible
        why = ""
        for query in (NVIDIA_SMI + THROTTLED, NVIDIA_SMI):
            command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={which}"]
            try:
                text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            except (OSError, subprocess.SubprocessError) as error:
                why = f"not available: {type(error).__name__}"
                continue
            return dict(zip(query.split(","), (value.strip() for value in text.split(",")), strict=False))
        return {"nvidia-smi": why}

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def time(self, way: Way, before: Way | None = None) -> float:
        return self.many(way, 1, before)[0]

    def many(self, way: Way, count: int, before: Way | None = None) -> list[float]:
        """Microseconds on the device of each of `count` calls; nothing waits in between."""
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in pairs:
            if before is not None:
                before()
            start.record()
            way()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in pairs]

    def capture(self, way: Way) -> tuple[Way, Any]:
        """(replay, the outputs that a replay writes)."""
        stream = torch.cuda.current_stream()
        side = torch.cuda.Stream(self.device)
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            for _ in range(2):
                way()
        stream.wait_stream(side)
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                out = way()
        except BaseException:  # leaving a capture that failed, torch may leave its stream behind
            torch.cuda.set_stream(stream)
            raise
        return graph.replay, out

    def flush(self) -> None:
        """Write twice the L2, so that nothing else is left in it."""
        if self._scratch is None:
            self._scratch = torch.empty(max(2 * self.l2_bytes, 64 << 20), dtype=torch.uint8, device=self.device)
        self._scratch.zero_()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    @contextlib.contextmanager
    def one_launch(self, wanted: bool) -> Iterator[None]:
        """vic_cluster in one cooperative launch, which must then fit, or in one launch a phase."""
        from vitcop_kernels.ops.vic_cluster import kernel as launcher

        kernel: Any = launcher

        asked, fits = [], kernel.fits

        def decide(*args: Any) -> bool:
            asked.append(wanted and fits(*args))
            return asked[-1]

        kernel.fits = decide
        try:
            yield
            if wanted and not any(asked):
                raise NotImplementedError("the one launch does not fit this device at this shape")
        finally:
            kernel.fits = fits

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()  # functions that share their code would count as recompilations
        return torch.compile(function, dynamic=False)

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)


class _NoReads(TorchDispatchMode):
    """On a CPU: the ops that would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            raise RuntimeError(f"{func} reads a value on the host")
        return func(*args, **(kwargs or {}))


class DryRun:
    """A CPU that goes through the motions. Its times are those of another machine at toy sizes, and mean nothing."""

    dry_run = True
    name = "dry run on a CPU"
    l2_bytes = 1 << 16
    memory_bytes = 8 << 30
    sms = 132

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.device = torch.device("cpu")
        self._scratch = torch.empty(1024)

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "cpu, dry run", "state": self.state()}

    def state(self) -> dict[str, str]:
        return {"nvidia-smi": "not asked: dry run"}

    def synchronize(self) -> None:
        pass

    def time(self, way: Way, before: Way | None = None) -> float:
        return self.many(way, 1, before)[0]

    def many(self, way: Way, count: int, before: Way | None = None) -> list[float]:
        found = []
        for _ in range(count):
            if before is not None:
                before()
            start = time.perf_counter()
            way()
            found.append((time.perf_counter() - start) * 1e6)
        return found

    def capture(self, way: Way) -> tuple[Way, Any]:
        """A replay calls again, and writes into the outputs of the first call."""
        out = way()

        def replay() -> None:
            for old, new in zip(flat(out), flat(way()), strict=True):
                old.copy_(new)

        return replay, out

    def flush(self) -> None:
        self._scratch.zero_()

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return (end - start) * 1e6

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        with _NoReads():
            yield

    @contextlib.contextmanager
    def one_launch(self, wanted: bool) -> Iterator[None]:
        yield

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False, backend="eager")

    def free_bytes(self) -> int:
        return self.memory_bytes

    def reset_peak(self) -> None:
        pass

    def peak_bytes(self) -> int:
        return 0


Device = CudaDevice | DryRun


def pick(dry_run: bool) -> Device:
    if dry_run:
        return DryRun()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here; --dry-run goes through the motions on a CPU")
    return CudaDevice()
