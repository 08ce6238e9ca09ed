"""Committed answers, read back as scores."""

import functools
from dataclasses import dataclass, field
from typing import Any

from .questions import TASKS, Item, by_picture
from .run import path_of, read
from .scores import Answered

KEPT_FROM = 0.9  # unpruned accuracy that keeps a task in the study


@dataclass
class Results:
    """All settings that were asked on a split."""

    split: str
    found: dict[str, dict[str, Any]]  # by setting
    items: list[Item]
    seed: int = 0  # of the training
    _scores: dict[str, Answered] = field(default_factory=dict)

    @classmethod
    def read(cls, split: str, seed: int = 0) -> "Results":
        found = {name: one for name, one in read(split, seed).items() if name not in ("questions", "looks")}
        items = [Item(*row) for row in read(split, 0)["questions"]["items"]]
        weights = {result["checkpoint_sha256"] for result in found.values()}
        if len(weights) > 1:
            raise SystemExit(f"{path_of(split, seed)}: answers of {len(weights)} different checkpoints")
        return cls(split, found, items, seed)

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def answered(self, name: str, pictures: int | None = None) -> Answered:
        """Of a setting; of the first pictures alone, to be compared with one that was asked no more."""
        if name not in self._scores:
            answers = self.found[name]["answers"]
            scores, counts = by_picture(self.items[: len(answers)], answers)
            self._scores[name] = Answered(scores, counts)
        whole = self._scores[name]
        return Answered(whole.scores[:pictures], whole.counts[:pictures])

    @functools.cached_property
    def looks(self) -> dict[str, Any]:
        return read(self.split, self.seed)["looks"]

    def pictures(self, name: str) -> int:
        return len(self.answered(name).scores)

    @functools.cached_property
    def kept(self) -> list[int]:
        """Tasks (numbers) that the unpruned model can do: the others would measure its own mistakes."""
        accuracy = self.answered("unpruned").accuracy()
        return [number for number in range(len(TASKS)) if accuracy[number] >= KEPT_FROM]
