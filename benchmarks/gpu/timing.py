"""How long a call takes: inputs in L2 or not, launched one by one or from a CUDA graph; and what the device can do."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitcop_kernels.bench.device import Device
from vitcop_kernels.bench.statistics import quantiles

METHOD = {
    "eager warm": "events around blocks of calls back to back, same inputs; includes the gaps between launches",
    "eager cold": "events around one call behind a write of twice the L2, which hides part of the launch on the host",
    "graph warm": "a graph of several calls on the same inputs, replayed; per call",
    "graph cold": "a graph of calls on copies of the inputs that together exceed twice the L2; or, where the inputs "
    "are too small for that, a graph of one call replayed behind a write of twice the L2 (marked 'flushed': includes "
    "the start of the graph)",
}
COPIES = 64  # of the inputs, at most


def _timing(samples: Sequence[float], **more: Any) -> dict[str, Any]:
    return {"us": [round(s, 4) for s in samples], **quantiles(samples), **more}


def _collect(once: Callable[[int], list[float]], seconds: float, least: int = 5, most: int = 60) -> list[float]:
    """Samples until the time is up, at least a few."""
    found: list[float] = []
    end = time.monotonic() + seconds
    while len(found) < least or (time.monotonic() < end and len(found) < most):
        found += once(min(10, most))
    return found


def measure(
    device: Device, function: Callable[..., Any], inputs: Sequence[Tensor], seconds: float, graphs: bool = True
) -> dict[str, Any]:
    """Each mode of METHOD: raw samples in microseconds a call, and their 20th, 50th and 80th percentile."""

    def way() -> Any:
        return function(*inputs)

    way()
    first = device.time(way)
    least = 5 if first < 1e5 else 2
    block = max(1, min(20, int(200 / max(first, 1.0))))

    def in_blocks(count: int) -> list[float]:
        return [t / block for t in device.many(again(way, block), min(count, least))]

    found = {
        "eager warm": _timing(_collect(in_blocks, seconds / 4, least), calls=block),
        "eager cold": _timing(
            _collect(lambda count: device.many(way, min(count, least), device.flush), seconds / 4, least)
        ),
    }
    if not graphs:
        return found
    calls = max(1, min(20, int(2000 / max(first, 1.0))))
    replay, _ = device.capture(again(way, calls))
    found["graph warm"] = _timing(
        _collect(lambda n: [t / calls for t in device.many(replay, min(n, least))], seconds / 4, least), calls=calls
    )
    found["graph cold"] = _cold_graph(device, function, inputs, seconds / 4, least)
    return found


def _cold_graph(
    device: Device, function: Callable[..., Any], inputs: Sequence[Tensor], seconds: float, least: int
) -> dict[str, Any]:
    size = sum(t.numel() * t.element_size() for t in inputs)
    copies = -(-2 * device.l2_bytes // max(size, 1))
    if copies <= COPIES and copies * size < device.free_bytes() // 4:
        copies = max(2, copies)
        sets = [[t.clone() for t in inputs] for _ in range(copies)]

        def each() -> Any:
            for one in sets:
                out = function(*one)
            return out

        replay, _ = device.capture(each)
        once = lambda n: [t / copies for t in device.many(replay, min(n, least))]  # noqa: E731
        return _timing(_collect(once, seconds, least), calls=copies)
    replay, _ = device.capture(lambda: function(*inputs))
    once = lambda n: device.many(replay, min(n, least), device.flush)  # noqa: E731
    return _timing(_collect(once, seconds, least), calls=1, flushed=True)


def again(way: Callable[[], Any], count: int) -> Callable[[], Any]:
    def several() -> Any:
        for _ in range(count):
            out = way()
        return out

    return several


def ceilings(device: Device) -> dict[str, Any]:
    """What this device does at best, measured now: a large copy, matrix products, and an empty kernel in a graph."""
    small = device.dry_run
    source = torch.empty(1 << 12 if small else 1 << 29, dtype=torch.uint8, device=device.device).random_()
    target = torch.empty_like(source)
    copy = quantiles(device.many(lambda a=target, b=source: a.copy_(b), 3 if small else 20)[1:])["p50"]
    del source, target
    found: dict[str, Any] = {"copy_gbs": 2 * (1 << 12 if small else 1 << 29) / copy / 1e3, "matmul_tflops": {}}
    n = 32 if small else 8192
    for dtype in (torch.bfloat16, torch.float16):
        a, b = (torch.randn(n, n, device=device.device, dtype=dtype) for _ in range(2))
        us = quantiles(device.many(lambda a=a, b=b: a @ b, 3 if small else 12)[2:])["p50"]
        found["matmul_tflops"][str(dtype).removeprefix("torch.")] = 2 * n**3 / us / 1e6
    del a, b
    one = torch.zeros(1, device=device.device)
    replay, _ = device.capture(again(lambda: one.add_(1), 100))
    found["launch_us"] = quantiles([t / 100 for t in device.many(replay, 10)])["p50"]
    return found
