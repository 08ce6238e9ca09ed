"""One model with and without pruning, side by side: what `vitcop run` does, without printing."""

import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .engine.report import FlopsReport, Report
from .methods.base import Method
from .session import prune

PHOTOGRAPH = Path(__file__).parent / "assets" / "coffee.jpg"
PHOTOGRAPH_PROMPT = "What is on the table?"
TINY_PICTURE = Path(__file__).parent / "assets" / "shapes.png"
TINY_PROMPT = "What is above the white ring?"
MAX_ELONGATION = 50  # the processor scales the short side to 336 px, and the long one with it


class UserError(Exception):
    """Something that the user can put right, in one sentence."""


@dataclass
class Loaded:
    model: Any
    processor: Any
    name: str
    random_weights: bool


@dataclass
class Timing:
    """Seconds of one generation. `first_token`: vision tower and prefill; `per_token`: each token after it."""

    first_token: float
    per_token: float | None
    total: float


@dataclass
class Arm:
    """One side of the comparison. Times are medians over the repeats."""

    answer: str = ""
    tokens: int = 0
    timing: Timing = field(default_factory=lambda: Timing(0.0, None, 0.0))
    repeats: list[Timing] = field(default_factory=list)


@dataclass
class StageRow:
    name: str
    layer: int
    tokens_in: int
    tokens_out: int
    merged: int | None  # output tokens that are means
    seconds: float


@dataclass
class Comparison:
    unpruned: Arm
    pruned: Arm
    report: Report
    stages: list[StageRow]
    selection_seconds: float

    @property
    def flops(self) -> FlopsReport:
        return self.report.flops


def open_photograph(path: str | Path) -> Any:
    """A photograph as a PIL image in RGB, turned upright. Raises UserError for anything else."""
    from .images import ImageError, open_image

    try:
        image = open_image(path)
    except ImageError as error:
        raise UserError(f"--image: {error}") from None
    width, height = image.size
    if max(width, height) > MAX_ELONGATION * min(width, height):
        raise UserError(f"--image: {path} is {width} x {height} pixels, too elongated for a square input")
    return image


def encode(loaded: Loaded, image: Any, prompt: str) -> dict[str, Any]:
    """The model's inputs for one photograph and one question."""
    processor = loaded.processor
    image_token = getattr(processor, "image_token", "<image>")
    if image_token in prompt:
        raise UserError(f"--prompt: leave {image_token} out; it is inserted automatically")
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        text = f"USER: {image_token}\n{prompt} ASSISTANT:"
    inputs = processor(images=image, text=text, return_tensors="pt").to(loaded.model.device)
    if inputs["pixel_values"].is_floating_point():
        inputs["pixel_values"] = inputs["pixel_values"].to(loaded.model.dtype)
    return dict(inputs)


def seen_photo(loaded: Loaded, inputs: dict[str, Any]) -> Any:
    """`[H, W, 3]` in [0, 1]: the pixels that went into the vision tower, with CLIP's normalisation undone."""
    images = loaded.processor.image_processor
    pixels = inputs["pixel_values"].float().cpu()
    pixels = pixels.reshape(-1, *pixels.shape[-3:])[0].permute(1, 2, 0)
    return (pixels * pixels.new_tensor(images.image_std) + pixels.new_tensor(images.image_mean)).clamp(0, 1).numpy()


class _Clock:
    """A streamer of `generate` that notes when each token arrives; handing one over waits for the device."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        pass


def generate(loaded: Loaded, inputs: dict[str, Any], max_new_tokens: int) -> tuple[Timing, list[int]]:
    """One greedy answer and its times."""
    clock = _Clock()
    if loaded.model.device.type == "cuda":
        torch.cuda.synchronize(loaded.model.device)
    start = time.perf_counter()
    output = loaded.model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
        streamer=clock,
    )  # fmt: skip
    end = time.perf_counter()
    times = clock.times
    per_token = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    return Timing(times[0] - start, per_token, end - start), output[0, inputs["input_ids"].shape[1] :].tolist()


def compare(
    loaded: Loaded,
    inputs: dict[str, Any],
    method: Method,
    *,
    max_new_tokens: int = 24,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Answer with and without pruning: both are warmed up once, then measured in turns.

    `progress` is told what comes next.
    """
    arms, seconds, report = (Arm(), Arm()), [], Report()
    for repeat in range(repeats + 1):
        for arm, label in zip(arms, ("unpruned", "pruned"), strict=True):
            progress(f"warming up, {label}" if repeat == 0 else f"measuring {repeat} of {repeats}, {label}")
            length = min(2, max_new_tokens) if repeat == 0 else max_new_tokens
            if label == "unpruned":
                timing, answer = generate(loaded, inputs, length)
            else:
                with prune(loaded.model, method) as report:
                    timing, answer = generate(loaded, inputs, length)
            if repeat:
                arm.repeats.append(timing)
                arm.tokens = len(answer)
                arm.answer = loaded.processor.decode(answer, skip_special_tokens=True).strip()
        if repeat:
            seconds.append([stage.seconds for stage in report.stages])
    for arm in arms:
        arm.timing = _median(arm.repeats)
    per_stage = [statistics.median(column) for column in zip(*seconds, strict=True)]
    rows = [
        StageRow(
            stage.name, stage.layer, stage.tokens_in[0], stage.tokens_out[0],
            None if stage.merged is None else int(stage.merged[0].sum()), duration,
        )
        for stage, duration in zip(report.stages, per_stage, strict=True)
    ]  # fmt: skip
    return Comparison(arms[0], arms[1], report, rows, sum(per_stage))


def _median(timings: list[Timing]) -> Timing:
    per_token = [t.per_token for t in timings if t.per_token is not None]
    return Timing(
        statistics.median(t.first_token for t in timings),
        statistics.median(per_token) if per_token else None,
        statistics.median(t.total for t in timings),
    )


def as_json(
    loaded: Loaded, result: Comparison, *, image: str, prompt: str, method: Method, extra: dict[str, Any]
) -> str:
    """Everything that was measured, as one JSON document."""
    report = result.report
    stages = []
    for row, stage in zip(result.stages, report.stages, strict=True):
        entry = asdict(row) | {"kept": stage.kept[0].tolist(), "segments": stage.segments(0)}
        entry["labels"] = None if stage.labels is None else stage.labels[0].tolist()
        entry["is_mean"] = None if stage.merged is None else stage.merged[0].tolist()
        stages.append(entry)
    document = {
        "model": loaded.name,
        "random_weights": loaded.random_weights,
        "image": image,
        "prompt": prompt,
        "method": {type(method).__name__: {key: value for key, value in vars(method).items() if value is not None}},
        "visual_tokens": report.visual_tokens[0],
        "text_tokens": report.text_tokens[0],
        "mean_tokens": report.mean_tokens,
        "stages": stages,
        "unpruned": asdict(result.unpruned),
        "pruned": asdict(result.pruned),
        "selection_seconds": result.selection_seconds,
        "flops": asdict(result.flops),
        "cr_int": report.cr_int,
        "kv_bytes": report.kv_bytes,
        "kv_bytes_unpruned": report.kv_bytes_unpruned,
        "notes": report.notes,
        **extra,
    }
    return json.dumps(document, indent=2) + "\n"


def first_sentence(error: BaseException) -> str:
    """What an exception of another library says, up to its first full stop."""
    text = " ".join(str(error).split())
    return re.split(r"(?<=[\w)'\"]{2})\.(?:\s|$)", text, maxsplit=1)[0] or type(error).__name__
