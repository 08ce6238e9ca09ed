"""How to measure an op: warm, on the same inputs, taking turns with what it is compared with, and the spread shown.

python examples/benchmark.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import vitcop_kernels as ops


def measure(candidates: dict[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, list[float]]:
    """Milliseconds of every call. Taking turns lets a busy machine slow all candidates down alike."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()  # builds, allocates, picks kernels
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in candidates.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def eager(query: Tensor, key: Tensor) -> Tensor:
    """attention_saliency as one would write it: the attention matrix, then its sum."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).sum((1, 2))


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query, key = torch.randn(8, 32, 16, 128, device=device), torch.randn(8, 32, 576, 128, device=device)
    torch.testing.assert_close(ops.attention_saliency(query, key), eager(query, key), rtol=1e-4, atol=1e-5)
    times = measure(
        {"eager PyTorch": lambda: eager(query, key), "attention_saliency": lambda: ops.attention_saliency(query, key)}
    )
    print(f"query {tuple(query.shape)}, key {tuple(key.shape)}, {device}, {torch.get_num_threads()} threads")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:20} {median:8.3f} ms  (half of {len(values)} calls within {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
