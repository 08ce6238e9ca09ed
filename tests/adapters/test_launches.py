"""docs/launches.md says how often a stage would launch a kernel on a GPU; here it is counted."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import Launches
from tiny_llava import batch, prompt

import vitcop
from vitcop import ViTCoP
from vitcop.engine.ahead import Ahead
from vitcop.engine.run import Run

DOCS = Path(__file__).parents[2] / "docs" / "launches.md"
BATCHES = ((1,), (1, 1), (1, 2, 0, 1))  # images of each sample: the columns of the first table


def table(header: str) -> list[list[str]]:
    """The rows below the table header that begins with `header`, cell by cell."""
    lines = iter(DOCS.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {header} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" `") for cell in line.strip("|").split("|")])
    return rows


class Lane:
    """Stands for a side stream, beside which the clustering is not counted."""

    def fork(self, work: Callable[[], Any]) -> Any:
        return work()

    def join(self, result: Any) -> None: ...


@pytest.fixture
def counted(llava: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """counted(images, semantics): the launches of each stage, by op."""
    pytest.importorskip("triton")
    prune, work = Run._prune, Ahead._timed
    stages: dict[str, Counter[str]] = {}
    running: list[Launches] = []

    def count(self: Run, number: int, stage: Any, *args: Any) -> Any:
        running.append(Launches())
        with running[-1]:
            result = prune(self, number, stage, *args)
        stages[stage.name] = running.pop().counts
        return result

    def aside(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not running:
                return function(*args, **kwargs)
            with running[-1].paused():
                return function(*args, **kwargs)

        return call

    def run(images: tuple[int, ...], semantics: str) -> dict[str, Counter[str]]:
        model = llava()
        decoder = model.model.language_model
        monkeypatch.setattr(decoder.rotary_emb, "forward", aside(decoder.rotary_emb.forward))
        with vitcop.prune(model, ViTCoP(retention=0.3, semantics=semantics)), torch.no_grad():
            model(**batch([prompt(n) for n in images]))
        return stages

    monkeypatch.setattr("vitcop.engine.run.lane_for", lambda device: Lane())
    monkeypatch.setattr(Run, "_prune", count)
    monkeypatch.setattr(Ahead, "_timed", aside(work))
    monkeypatch.setattr(Run, "_report", aside(Run._report))
    monkeypatch.setattr(Run, "_change", aside(Run._change))
    return run


@pytest.mark.parametrize("semantics", ["paper", "released"])
@pytest.mark.parametrize("column", range(3), ids=["one image", "two alike", "ragged"])
def test_a_stage_launches_as_often_as_the_docs_say(counted: Any, column: int, semantics: str) -> None:
    got = counted(BATCHES[column], semantics)
    rows = {row[0]: int(row[2 + column]) for row in table("stage") if row[1] == semantics}
    assert rows.keys() == {"Stage II", "Stage III"}
    assert {"Stage II": got["stage2"].total(), "Stage III": got["stage3"].total()} == rows, got


def test_the_steps_of_a_stage_are_those_of_the_docs(counted: Any) -> None:
    got = counted((1,), "paper")
    for k, stage in enumerate(("stage2", "stage3")):
        assert got[stage] == Counter({row[1]: int(row[2 + k]) for row in table("step")}), stage


def test_an_op_counts_what_its_launcher_launches_and_views_count_nothing() -> None:
    pytest.importorskip("triton")
    from vitcop_kernels import key_norms, plan_tokens

    x, labels = torch.randn(2, 6, 4), torch.zeros(2, 6, dtype=torch.int64)
    with Launches() as watch:
        y = x.transpose(0, 1)[None].expand(3, -1, -1, -1) + torch.empty(1)
        plan_tokens(labels, x[..., 0], 2, 3)
        with watch.paused():
            y.sum()
        key_norms(x[None])
    assert watch.counts == {"add": 1, "plan_tokens": 2, "key_norms": 1}
