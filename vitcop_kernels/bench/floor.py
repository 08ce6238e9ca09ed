"""What the machine does at best, measured in the same run, and the time that no implementation of a case undercuts."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .sampling import Way, clock_for

SIZES = tuple(1 << k for k in range(14, 29, 2))  # bytes of a working set: 16 KiB to 256 MiB
GEMMS = ((1536, 1536, 1536), (256, 4096, 4096))  # rows, inner, columns: a square, and a projection of few tokens


@dataclass(frozen=True)
class Rates:
    """Bytes a second by working set (the better of a copy and a read), FLOPs a second of a large GEMM by dtype."""

    bandwidth: dict[int, float]
    flops: dict[str, float]
    call_seconds: float  # of torch's smallest op

    def floor(self, bytes: float, flops: float, dtype: str) -> float:
        """Seconds: the slowest of moving the bytes, doing the arithmetic, and calling anything at all.

        Inputs of a repeated call stay in caches as far as they fit. So the best rate of any working set down to a
        quarter of this one counts: a still smaller one might have come from a nearer cache.
        """
        sizes = [size for size in self.bandwidth if size >= bytes / 4] or [max(self.bandwidth)]
        memory = bytes / max(self.bandwidth[size] for size in sizes)
        # Half precision may be computed in float32 where that is quicker.
        return max(memory, flops / max(self.flops[dtype], self.flops["float32"]), self.call_seconds)

    def best_of(self, other: "Rates") -> "Rates":
        """Of two measurements, one at the start of a run and one at its end, say."""
        return Rates(
            {size: max(rate, other.bandwidth[size]) for size, rate in self.bandwidth.items()},
            {dtype: max(rate, other.flops[dtype]) for dtype, rate in self.flops.items()},
            min(self.call_seconds, other.call_seconds),
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_rates(device: torch.device, dtypes: tuple[str, ...] = ("float32",), quick: bool = False) -> Rates:
    """Best of several samples: a floor wants what the machine can do, not what it usually does."""
    clock, samples = clock_for(device), 3 if quick else 9

    def best(way: Way, count: int) -> float:
        way()
        return min(clock.seconds(way, count) for _ in range(samples))

    bandwidth = {}
    for size in SIZES[:2] if quick else SIZES:
        count = max(1, min(200, (1 << 24) // size))
        whole = torch.ones(size // 4, device=device)
        source, target = whole.chunk(2)
        copy = best(functools.partial(target.copy_, source), count)
        read = best(whole.sum, count)
        bandwidth[size] = size / min(copy, read)
    flops = dict.fromkeys(sorted({"float32", *dtypes}), 0.0)
    with _tf32() if device.type == "cuda" else contextlib.nullcontext():  # our float32 kernels use it there
        for dtype in flops:
            for m, k, n in ((64, 64, 64),) if quick else GEMMS:
                a, b = (torch.randn(s, device=device).to(getattr(torch, dtype)) for s in ((m, k), (n, k)))
                seconds = best(functools.partial(torch.nn.functional.linear, a, b), 1)
                flops[dtype] = max(flops[dtype], 2 * m * k * n / seconds)
    one = torch.zeros(1, device=device)
    return Rates(bandwidth, flops, best(functools.partial(one.add_, 1), 100))


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
