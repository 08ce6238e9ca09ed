"""Generation of a few tokens by LLaVAs of many sizes, with and without pruning in turn."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import vitcop
from benchmarks.llava import TEXT_TOKENS, Size, build, prompt
from vitcop import ViTCoP
from vitcop_kernels.bench.sampling import turns
from vitcop_kernels.bench.statistics import summary

RETENTION = 1 / 9
# A tower and a vocabulary that are small beside the decoder, as CLIP and 32000 words are beside 7 billion weights.
BASE = Size(
    width=512, inner=1376, heads=8, layers=12, side=24, vision_width=256, vision_inner=1024, vision_heads=4,
    vision_layers=4, vocab=2000,
)  # fmt: skip
TINY = dataclasses.replace(
    BASE, width=64, inner=96, heads=2, layers=6, vision_width=64, vision_inner=64, vision_layers=2
)
DECODED = 8  # tokens after the first


@dataclasses.dataclass(frozen=True)
class Point:
    size: Size
    text: int = TEXT_TOKENS
    batch: int = 1


def sweeps(base: Size = BASE, quick: bool = False) -> Iterator[tuple[str, list[tuple[int, Point]]]]:
    """(axis, [(value, point), ...]): one thing changes at a time."""

    def sized(width: int) -> Size:
        heads = max(1, width // 64)
        return dataclasses.replace(base, width=width, inner=round(width * 11008 / 4096 / 16) * 16, heads=heads)

    sides = (3, 6, 9) if quick else (3, 4, 6, 8, 12, 16, 20, 24)
    at = dataclasses.replace(base, side=sides[-1])
    small = dataclasses.replace(base, side=sides[len(sides) // 2 - 1])
    yield "visual tokens", [(side**2, Point(dataclasses.replace(base, side=side))) for side in sides]
    yield "text tokens", [(n, Point(at, text=n)) for n in ((8, 57) if quick else (8, 57, 256, 1024))]
    yield (
        "text tokens beside few visual tokens",
        [(n, Point(small, text=n)) for n in ((8, 57) if quick else (8, 57, 256, 1024))],
    )
    widths = (64, 128) if quick else (64, 128, 256, 512, 1024)
    yield "decoder width", [(w, Point(dataclasses.replace(sized(w), side=sides[-1]))) for w in widths]
    yield "batch", [(b, Point(at, batch=b)) for b in ((1, 2) if quick else (1, 2, 4))]


class _Tokens(StoppingCriteria):
    """Notes when each token is there; never stops."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def answer(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, float, torch.Tensor]:
    """(seconds to the first token, seconds of each after it, tokens)"""
    noted = _Tokens()
    start = time.perf_counter()
    length = DECODED + 1
    tokens = model.generate(
        **inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False,
        stopping_criteria=StoppingCriteriaList([noted]),
    )  # fmt: skip
    return noted.times[0] - start, (noted.times[-1] - noted.times[0]) / DECODED, tokens


def measure(point: Point, rounds: int) -> dict[str, Any]:
    """Ratios pruned over unpruned, of paired rounds. Raises RuntimeError if pruning changed the unpruned model."""
    model, inputs = build(point.size), prompt(point.size, point.text, point.batch)
    method = ViTCoP(retention=RETENTION)
    _, _, untouched = answer(model, inputs)
    try:
        with vitcop.prune(model, method) as report:
            answer(model, inputs)
    except ValueError as error:  # too few tokens for the schedule, say
        return {"not_run": str(error)}
    if not torch.equal(answer(model, inputs)[2], untouched):
        raise RuntimeError("the model answers differently after pruning was taken off")
    ways: dict[str, Callable[[], Any]] = {
        "unpruned": contextlib.nullcontext, "vitcop": lambda: vitcop.prune(model, method)
    }  # fmt: skip
    seconds = {name: {"prefill": [], "decode": []} for name in ways}
    for order in turns(list(ways), rounds):
        for name in order:
            with ways[name]():
                first, each, _ = answer(model, inputs)
            seconds[name]["prefill"].append(first)
            seconds[name]["decode"].append(each)
    found: dict[str, Any] = {"kept": [stage.tokens_out[0] for stage in report.stages], "seconds": seconds}
    for phase in ("prefill", "decode"):
        pairs = zip(seconds["vitcop"][phase], seconds["unpruned"][phase], strict=True)
        found[phase] = dataclasses.asdict(summary([a / b for a, b in pairs]))
    return found


def measured(rounds: int, quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    base, found = TINY if quick else BASE, []
    known: dict[Point, dict[str, Any]] = {}  # the base point is part of several sweeps
    for axis, points in sweeps(base, quick):
        results = []
        for value, point in points:
            tell(f"{axis}: {value}")
            if point not in known:
                known[point] = measure(point, rounds)
            about = {"visual": point.size.visual, "text": point.text, "width": point.size.width, "batch": point.batch}
            results.append({"x": value, "at": about, **known[point]})
        found.append({"axis": axis, "points": results})
    return {"retention": RETENTION, "decoded": DECODED, "base": dataclasses.asdict(base), "sweeps": found}
