"""The generated questions have true answers, packing changes no logit, and training goes on where it was stopped."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.training import model as tiny
from studies.training import train as trainer
from studies.training.batches import BOS, IMAGE, PATCHES, TASKS, Batches, encode
from studies.training.pictures import COLORS, KINDS, PHOTOGRAPHS, SPLITS, WRITERS, Thing, compose
from studies.training.questions import ASKERS, COLS, NUMBERS, ROWS


def scenes(count: int) -> list[list[Thing]]:
    return [compose(random.Random(seed), "validation").things for seed in range(count)]


def read(words: str) -> tuple[int, int]:
    """Colour and kind of "red 7"."""
    color, kind = words.split()
    return list(COLORS).index(color), KINDS.index(kind)


def find(things: list[Thing], words: str) -> Thing:
    (found,) = [t for t in things if (t.color, t.kind) == read(words)]
    return found


def step(things: list[Thing], relation: str, start: Thing) -> Thing:
    down, right = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[relation]
    (found,) = [t for t in things if (t.row - start.row, t.col - start.col) == (down, right)]
    return found


def true(task: str, question: str, answer: str, things: list[Thing]) -> bool:
    """Read a question word by word, independently of how it was made."""
    words = question.split()
    names = [f"{list(COLORS)[t.color]} {KINDS[t.kind]}" for t in things]
    if task == "color":
        return [list(COLORS)[t.color] for t in things if KINDS[t.kind] == words[-1]] == [answer]
    if task == "kind":
        return [KINDS[t.kind] for t in things if list(COLORS)[t.color] == words[-1]] == [answer]
    if task == "at":
        there = [n for n, t in zip(names, things, strict=True) if [ROWS[t.row], COLS[t.col]] == words[-2:]]
        return (there or ["nothing"]) == [answer]
    if task == "where":
        thing = find(things, " ".join(words[-2:]))
        return f"{ROWS[thing.row]} {COLS[thing.col]}" == answer
    if task == "next":
        relation, _, name = question.removeprefix("what is ").partition(" the ")
        return find(things, answer) == step(things, relation, find(things, name))
    if task == "count":
        word = words[-1]
        tests = {"digits": lambda t: t.kind < 10, "shapes": lambda t: t.kind >= 10}
        test = tests.get(word, lambda t: word in (KINDS[t.kind], list(COLORS)[t.color]))
        return NUMBERS[sum(map(test, things))] == answer
    if task == "presence":
        return (" ".join(words[-2:]) in names) == (answer == "yes")
    if task == "row":
        return (
            " ".join(n for n, t in zip(names, things, strict=True) if ROWS[t.row] == words[-1]) or "nothing"
        ) == answer
    return " ".join(names) == answer


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_true(task: str) -> None:
    rng, asked = random.Random(0), 0
    for things in scenes(60):
        for _ in range(5):
            question = ASKERS[task](rng, things)
            if question is not None:
                asked += 1
                assert true(task, *question, things), (question, things)
                assert encode(" ".join(question))
    assert asked > 100


def test_presence_is_balanced() -> None:
    rng = random.Random(1)
    asked = [ASKERS["presence"](rng, things) for things in scenes(100) for _ in range(10)]
    yes = [answer == "yes" for _, answer in filter(None, asked)]
    # 1000 draws of a fair coin leave 0.5 +- 0.06 once in 10,000 times
    assert abs(sum(yes) / len(yes) - 0.5) < 0.06


def test_splits_share_neither_photographs_nor_writing() -> None:
    for a, b in itertools.combinations(SPLITS, 2):
        assert not set(PHOTOGRAPHS[a]) & set(PHOTOGRAPHS[b])
        assert not set(range(1797)[WRITERS[a]]) & set(range(1797)[WRITERS[b]])


def test_a_batch_is_its_number() -> None:
    data = Batches("validation", 2, 64, 10, seed=3)
    once, again, other = data[4], data[4], data[5]
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["pixels"], other["pixels"])


@torch.no_grad()
def test_packed_questions_get_the_logits_of_the_model_asked_one_by_one() -> None:
    model = tiny.build(0).eval()
    batch = Batches("validation", 2, 48, 1)[0]
    features, _ = tiny.see(model, batch["pixels"])
    places = torch.arange(1 + PATCHES).expand(2, -1)
    packed = trainer.answers(model, features, batch, places)
    compared = 0
    for row in range(2):
        for number in range(int(batch["segment"][row].max()) + 1):
            here = batch["segment"][row] == number
            ids = torch.cat([torch.tensor([BOS]), torch.full((PATCHES,), IMAGE), batch["ids"][row][here]])
            alone = model(input_ids=ids[None], pixel_values=tiny.normalized(batch["pixels"][row : row + 1])).logits[0]
            # float32: another order of summation in attention over 245 instead of about 205 keys
            torch.testing.assert_close(packed[row][here], alone[1 + PATCHES :], rtol=1e-3, atol=1e-3)
            compared += 1
    assert compared > 6


def test_training_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        phase: {**values, "steps": 4, "size": 2, "length": 32 * (phase == "decoder")}
        for phase, values in trainer.SETTINGS.items()
    }
    monkeypatch.setattr(trainer, "SETTINGS", settings)
    monkeypatch.setattr(trainer, "report", lambda *_: "")
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    for phase in settings:
        assert trainer.train(phase, tmp_path / "whole", seed=0, minutes=60)
        calls = 1
        while not trainer.train(phase, tmp_path / "parts", seed=0, minutes=0):  # a step at a time
            calls += 1
        assert calls == 4
    states = [torch.load(tmp_path / folder / "decoder.pt", weights_only=True) for folder in ("whole", "parts")]
    start = tiny.build(0).state_dict()
    for name, weight in states[0]["model"].items():
        assert torch.equal(weight, states[1]["model"][name]), name
    assert not torch.equal(start["lm_head.weight"], states[0]["model"]["lm_head.weight"])
