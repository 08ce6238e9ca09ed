"""Training batches: several questions about each picture packed behind one copy of it."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .pictures import COLORS, GRID, KINDS, Picture, compose
from .questions import ASKERS, WORDS

INDEX = {word: number for number, word in enumerate(WORDS)}
PAD, BOS, EOS, IMAGE = (INDEX[word] for word in ("<pad>", "<bos>", "<eos>", "<image>"))
PATCHES = GRID * GRID
TASKS = tuple(ASKERS)
Batch = dict[str, Tensor]


def encode(words: str) -> list[int]:
    return [INDEX[word] for word in words.split()]


def pack(rng: random.Random, picture: Picture, length: int, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Questions about one picture until `length` tokens are full; each sees the picture and itself alone.

    ids: the tokens. segment: question of a token, -1 for padding. offset: place in its question. target: the token to
    be predicted here, -1 where there is no loss. task: which of TASKS.
    """
    rows = {name: np.full(length, -1, np.int64) for name in ("segment", "target", "task")}
    rows |= {"ids": np.full(length, PAD, np.int64), "offset": np.zeros(length, np.int64)}
    at = number = 0
    turn = rng.randrange(len(tasks))
    misses = 0
    while misses < len(tasks):
        task = tasks[turn % len(tasks)]
        turn += 1
        asked = ASKERS[task](rng, picture.things)
        question, answer = (encode(words) for words in asked) if asked else ([], [])
        span = len(question) + len(answer)
        if not asked or at + span > length:
            misses += 1
            continue
        misses = 0
        here = slice(at, at + span)
        rows["ids"][here] = question + answer
        rows["segment"][here], rows["task"][here] = number, TASKS.index(task)
        rows["offset"][here] = np.arange(span)
        rows["target"][at + len(question) - 1 : at + span] = [*answer, EOS]
        at, number = at + span, number + 1
    return rows


def contents(picture: Picture) -> dict[str, np.ndarray]:
    """What the warm-up of the vision tower is taught: kind and colour of patches, counts and pairs of the picture."""
    counts = np.zeros(len(KINDS) + len(COLORS), np.int64)
    pairs = np.zeros((len(KINDS), len(COLORS)), np.float32)
    for thing in picture.things:
        counts[thing.kind] += 1
        counts[len(KINDS) + thing.color] += 1
        pairs[thing.kind, thing.color] = 1
    return {
        "patch_kind": picture.patch_kind,
        "patch_color": picture.patch_color,
        "counts": np.minimum(counts, 3),
        "pairs": pairs.reshape(-1),
    }


class Batches(Dataset[Batch]):
    """Batch number i of a split is always the same one, whoever makes it."""

    def __init__(self, split: str, size: int, length: int, count: int, tasks: Sequence[str] = TASKS, seed: int = 0):
        self.split, self.size, self.length, self.count = split, size, length, count
        self.tasks, self.seed = tasks, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        rng = random.Random(f"{self.split} {self.seed} {index}")
        rows: list[dict[str, Any]] = []
        for _ in range(self.size):
            picture = compose(rng, self.split)
            row = {"pixels": picture.pixels, **contents(picture)}
            rows.append(row | (pack(rng, picture, self.length, self.tasks) if self.length else {}))
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
