"""Prefill times at LLaVA-1.5's sequence length, pruned and unpruned: what `vitcop prefill` measures."""

import contextlib
import statistics
import time
from dataclasses import dataclass, field

import torch

from .methods.vitcop import ViTCoP
from .session import prune
from .sized_llava import TEXT_TOKENS, Size, build, prompt

__all__ = ["TEXT_TOKENS", "VISUAL_TOKENS", "Prefill", "measure"]

VISUAL_TOKENS = 576
HEAD_DIM = 128
VISION_LAYERS = 2  # of CLIP ViT-L/14's width; LLaVA-1.5 has 24
SECONDS = 15.0


@dataclass
class Prefill:
    """Seconds of each round."""

    unpruned: list[float] = field(default_factory=list)
    pruned: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)
    mean_tokens: float = 0.0

    def medians(self) -> tuple[float, float, float]:
        return statistics.median(self.unpruned), statistics.median(self.pruned), statistics.median(self.selection)


def measure(*, layers: int, width: int, retain: int, device: torch.device, dtype: torch.dtype, rounds: int) -> Prefill:
    """Time pruned and unpruned prefills in turns, after one warm-up of each.

    Stops after `rounds`, or after the first round that ends later than `SECONDS` from the start.

    Raises ValueError for a budget that the layers cannot reach.
    """
    size = Size(
        width=width, inner=round(width * 11008 / 4096), heads=max(1, width // HEAD_DIM), layers=layers,
        vision_layers=VISION_LAYERS, vocab=1024,
    )  # fmt: skip
    model, method, result = build(size, dtype).to(device), ViTCoP(retain=retain), Prefill()
    inputs = {name: tensor.to(device) for name, tensor in prompt(size, dtype=dtype).items()}

    @torch.no_grad()
    def prefill() -> float:
        _wait(device)
        start = time.perf_counter()
        model(**inputs, logits_to_keep=1)
        _wait(device)
        return time.perf_counter() - start

    begin = time.perf_counter()
    for number in range(rounds + 1):
        for times, active in (
            (result.unpruned, contextlib.nullcontext()),
            (result.pruned, prune(model, method)),
        ):
            with active as report:
                seconds = prefill()
            if number:
                times.append(seconds)
                if report is not None:
                    result.selection.append(report.selection_seconds)
                    result.mean_tokens = report.mean_tokens
        if number and time.perf_counter() - begin > SECONDS:
            break
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
