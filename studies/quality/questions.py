"""The questions of the study, and what an answer to them is worth."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

TASKS = ("color", "kind", "at", "where", "next", "count", "presence", "row", "everything")
LISTS = ("row", "everything")  # several things named: worth a share of a point
LONGEST = {"row": 7, "everything": 17}  # tokens of an answer, its end included; 3 for the others
PICTURES = {"validation": 160, "test": 360}
SEED = 0


@dataclass(frozen=True)
class Item:
    picture: int
    task: str
    question: str
    answer: str


def ask(split: str, pictures: int | None = None) -> tuple[list[Any], list[Item]]:
    """Pictures (PIL) of a split, and one question of each task that a picture allows. Needs the extra `training`."""
    from PIL import Image

    from studies.training.pictures import compose
    from studies.training.questions import ASKERS

    assert tuple(ASKERS) == TASKS
    images, items = [], []
    for number in range(PICTURES[split] if pictures is None else pictures):
        rng = random.Random(f"quality {split} {SEED} {number}")
        picture = compose(rng, split)
        images.append(Image.fromarray(picture.pixels))
        for task, asker in ASKERS.items():
            asked = asker(rng, picture.things)
            if asked is not None:
                items.append(Item(number, task, *asked))
    return images, items


def score(task: str, given: str, right: str) -> float:
    """1 for the right words. A list is worth the F1 of the things that it names, whatever their order."""
    if task not in LISTS:
        return float(given == right)
    named, there = things(given), things(right)
    found = (named & there).total()
    return 2 * found / (named.total() + there.total()) if found else 0.0


def things(words: str) -> Counter[str]:
    """Of "red 7 blue ring", "red 7" and "blue ring"; a word without its fellow is a thing that is not there."""
    parts = words.split()
    return Counter(" ".join(parts[at : at + 2]) for at in range(0, len(parts), 2))


def by_picture(items: list[Item], answers: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of scores and numbers of questions, `[pictures, tasks]`."""
    pictures = 1 + max(item.picture for item in items)
    scores, counts = np.zeros((2, pictures, len(TASKS)))
    for item, given in zip(items, answers, strict=True):
        scores[item.picture, TASKS.index(item.task)] += score(item.task, given, item.answer)
        counts[item.picture, TASKS.index(item.task)] += 1
    return scores, counts
