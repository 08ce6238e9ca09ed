"""Ask every question under one setting, and keep the answers."""

import hashlib
import json
import lzma
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitcop.evaluation.answering import Answerer, Prompt
from vitcop.methods.base import Method
from vitcop_kernels.bench.record import commit, machine

from .prefix import TowerPrefix
from .questions import LONGEST, Item

RESULTS = Path(__file__).parents[1] / "results"


class Study:
    """vitcop-tiny, the pictures and the questions of a split. Needs the extra `training`."""

    def __init__(
        self, split: str, checkpoint: Path, pictures: int | None = None, batch_size: int = 64, seed: int = 0
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from .questions import ask

        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.images, self.items = ask(split, pictures)
        model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
        self.answerer = Answerer(model.eval(), processor, None)
        pixels = self.answerer.processor.image_processor(images=self.images, return_tensors="pt")["pixel_values"]
        self.prefix = TowerPrefix(model, pixels)
        self.sha256 = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()

    def answers(self, method: Method | None, pictures: int | None = None) -> dict[str, Any]:
        """The answers in the order of the items, and what the prefills cost; of the first pictures, or of all."""
        asked_items = [item for item in self.items if pictures is None or item.picture < pictures]
        asked = self.answerer
        asked.method = method
        answers: list[str] = [""] * len(asked_items)
        costs: dict[str, list[float]] = {"tokens": [], "flops": [], "flops_unpruned": [], "selection_ms": []}
        begin = time.perf_counter()
        for rows in batches(asked_items, self.batch_size):
            items = [asked_items[row] for row in rows]
            prompts = [Prompt(asked.question(item.question, images=1), [self.images[item.picture]]) for item in items]
            with self.prefix([item.picture for item in items]):
                texts = asked.generate(prompts, max_new_tokens=LONGEST.get(items[0].task, 3), do_sample=False)
            for row, (text, _) in zip(rows, texts, strict=True):
                answers[row] = text.strip()
            if method is not None and asked.report is not None:
                found = asked.report
                flops, each = found.flops, 1000 * found.selection_seconds / len(rows)
                values = (found.mean_tokens, flops.counter, flops.counter_unpruned, each)
                for name, value in zip(costs, values, strict=True):
                    costs[name] += [value] * len(rows)
        means = {name: statistics.fmean(values) for name, values in costs.items() if values}
        pictures = 1 + max(item.picture for item in asked_items)
        return {"pictures": pictures, **means, "seconds": time.perf_counter() - begin, "answers": answers}


def batches(items: Sequence[Item], size: int) -> list[list[int]]:
    """Rows of questions of one task, whose answers are about as long."""
    tasks: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        tasks.setdefault(item.task, []).append(row)
    return [rows[at : at + size] for rows in tasks.values() for at in range(0, len(rows), size)]


def path_of(split: str, seed: int) -> Path:
    """Answers of the shipped weights, which are of seed 0, or of weights trained with another seed."""
    return RESULTS / f"quality-{split}{f'-seed-{seed}' if seed else ''}.json.xz"


def read(split: str, seed: int) -> dict[str, Any]:
    """All that was found on a split, by setting, with "questions" and "looks"."""
    path = path_of(split, seed)
    return json.loads(lzma.decompress(path.read_bytes())) if path.exists() else {}


def keep(split: str, seed: int, name: str, found: Any) -> None:
    """Add one entry to the compressed table of a split."""
    everything = read(split, seed) | {name: found}
    text = json.dumps({key: everything[key] for key in sorted(everything)}, separators=(",", ":"))
    path_of(split, seed).write_bytes(lzma.compress(text.encode(), preset=9))


def keep_questions(split: str, items: Sequence[Item]) -> None:
    """What was asked, whatever the seed of the weights, so that answers can be scored without the pictures."""
    keep(split, 0, "questions", {"items": [list(vars(item).values()) for item in items]})


def about(study: Study, name: str) -> dict[str, Any]:
    return {
        "benchmark": "quality",
        "setting": name,
        "split": study.split,
        "seed": study.seed,
        "checkpoint_sha256": study.sha256,
        "commit": commit(Path(__file__).parent),
        "machine": machine(),
    }


def describe(method: Method | None) -> str:
    """The method as one would write it, without what is None or another method's field by default."""
    if method is None:
        return "none"
    given = {name: value for name, value in vars(method).items() if value is not None and not name.startswith("_")}
    inner = ", ".join(f"{k}={describe(v) if isinstance(v, Method) else repr(v)}" for k, v in given.items())
    return f"{type(method).__name__}({inner})"
