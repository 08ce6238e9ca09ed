"""What choosing costs: prefill under ViTCoP against the same counts with precomputed indices, and against no pruning.

The model has LLaVA-1.5-7B's true shape (CLIP ViT-L/14 at 336 px, 32 layers of width 4096) and random weights; its
decoder layers share one set of weights, so that it fits in memory and every layer still does its full work. The three
ways run in turn, so that a drift of the machine's speed cancels in the ratios.

    python -m benchmarks.prefill [--retain 64] [--rounds 5] [--layers 32] [--dtype float32]
"""

import argparse
import contextlib
import statistics
import time

import torch

import vitcop
from benchmarks.harness import write_results
from vitcop import ViTCoP
from vitcop.methods.replay import Replay
from vitcop.sized_llava import TEXT_TOKENS, Size, build, prompt
from vitcop_kernels.bench.statistics import Summary, summary

TARGET = 1.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retain", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()

    torch.set_num_threads(2)
    dtype = getattr(torch, options.dtype)
    size = Size(layers=options.layers)
    model, inputs = build(size, dtype), prompt(size, dtype=dtype)

    @torch.no_grad()
    def prefill() -> tuple[float, torch.Tensor]:
        start = time.perf_counter()
        logits = model(**inputs, logits_to_keep=1).logits
        return time.perf_counter() - start, logits

    method = ViTCoP(retain=options.retain)
    with vitcop.prune(model, method) as report:
        _, chosen = prefill()
    ways = {"unpruned": contextlib.nullcontext, "vitcop": lambda: vitcop.prune(model, method)}
    ways["precomputed"] = lambda: vitcop.prune(model, Replay(report))
    with ways["precomputed"]():
        _, replayed = prefill()
    if not torch.equal(chosen, replayed):
        raise SystemExit("prefill: the replayed plans give other logits than the chosen ones; not measuring")

    samples: dict[str, list[float]] = {name: [] for name in ways}
    selection = []
    for round_ in range(options.rounds):
        # The order turns over from round to round.
        for name in list(ways)[:: 1 if round_ % 2 else -1]:
            with ways[name]() as active:
                seconds, _ = prefill()
            samples[name].append(seconds)
            if name == "vitcop":
                selection.append(active.selection_seconds)
        print(f"round {round_ + 1}: " + ", ".join(f"{name} {s[-1]:.3f} s" for name, s in samples.items()), flush=True)

    def ratio(a: str, b: str) -> Summary:
        return summary([x / y for x, y in zip(samples[a], samples[b], strict=True)])

    chosen_over = {name: ratio("vitcop", name) for name in ("precomputed", "unpruned")}
    counts = [stage.tokens_out[0] for stage in report.stages]
    result = {
        "config": {**vars(options), "visual_tokens": 576, "text_tokens": TEXT_TOKENS, "kept": counts},
        "seconds": samples,
        "selection_seconds": selection,
        **{f"vitcop_over_{name}": found.median for name, found in chosen_over.items()},
        "intervals": {name: [found.low, found.high] for name, found in chosen_over.items()},
    }
    path = write_results("prefill", result)
    print(f"576 -> {' -> '.join(map(str, counts))} tokens, {options.layers} layers, {options.dtype}")
    for name, found in chosen_over.items():
        target = f", target {TARGET}" if name == "precomputed" else ""
        print(f"prefill, ViTCoP / {name}: {found.median:.4f} (95 % CI {found.low:.4f}-{found.high:.4f}{target})")
    print(f"choosing alone: {statistics.median(selection) * 1e3:.1f} ms; {path}")


if __name__ == "__main__":
    main()
