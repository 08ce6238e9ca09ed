"""How to measure an op: check it first, take turns with what it is compared with, and show the spread.

python examples/benchmark.py
"""

import torch
from torch import Tensor

import vitcop_kernels as ops
from vitcop_kernels.bench.sampling import clock_for, paired_ratio, sample, times
from vitcop_kernels.bench.statistics import summary


def eager(query: Tensor, key: Tensor) -> Tensor:
    """attention_saliency as one would write it: the attention matrix, then its sum."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).sum((1, 2))


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    query, key = torch.randn(8, 32, 16, 128, device=device), torch.randn(8, 32, 576, 128, device=device)
    torch.testing.assert_close(ops.attention_saliency(query, key), eager(query, key), rtol=1e-4, atol=1e-5)
    # In turn, the order reversed from round to round: a machine that slows down slows both down.
    samples = sample(
        {"eager PyTorch": lambda: eager(query, key), "attention_saliency": lambda: ops.attention_saliency(query, key)},
        clock=clock_for(device),
        budget=2.0,
    )
    print(f"query {tuple(query.shape)}, key {tuple(key.shape)}, {device}, {torch.get_num_threads()} threads")
    for name in samples:
        found = summary(times(samples, name))
        print(
            f"{name:20} {1e3 * found.median:8.3f} ms  (p20 {1e3 * found.p20:.3f}, p80 {1e3 * found.p80:.3f}, "
            f"{found.count} rounds)"
        )
    ratio = paired_ratio(samples, "attention_saliency", "eager PyTorch")
    print(f"ratio of paired rounds: {ratio.median:.3f}, 95 % interval {ratio.low:.3f} to {ratio.high:.3f}")


if __name__ == "__main__":
    main()
