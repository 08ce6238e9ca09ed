"""Faults injected into pruned models, and what came of them: `python -m benchmarks.evidence.faults`.

With the injector of tests/adapters/fault_injection.py: an exception in every call of everything that pruning puts into
a tiny model of each family, and of the model's own modules, while it answers a prompt. After each, the next answer
within the block, the model after the block and its unpruned answer must be those without a fault, bit for bit, and
nothing that went by may still be alive.
"""

import copy
import gc
import io
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import vitcop

from . import record

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "adapters")]  # the tests' tiny models, prompts and injector

from families import FAMILIES, Family  # noqa: E402
from fault_injection import Fault, Injected, Trial, answer, installed, snapshot  # noqa: E402

COMMAND = "python -m benchmarks.evidence.faults"
LAYERS, OPTIONS = 4, {"retention": 0.3, "deep_layer": 3}

FAULTS: dict[str, tuple[type[BaseException], bool]] = {
    "exception in a hook": (Injected, False),
    "KeyboardInterrupt in a hook": (KeyboardInterrupt, False),
    "out of memory in a module": (torch.OutOfMemoryError, True),
    "KeyboardInterrupt in a module": (KeyboardInterrupt, True),
}
"""What is raised, and whether in the model's own modules instead of what pruning has put in."""


def inject(family: Family, error: type[BaseException], within: bool, every: int) -> dict[str, int]:
    """How many faults ended how; "restored" is how they should."""
    method = family.method(**OPTIONS)
    model, inputs = family.build(layers=LAYERS), family.batch([family.prompt(1)])
    gc.collect()
    gc.freeze()  # what is there already is nothing that a fault could leave
    trial = Trial(model, inputs, lambda model: vitcop.prune(model, method), within)
    chosen: list[Fault] = trial.faults()[::every]
    outcomes = Counter(trial.run(fault, error("injected")) or "restored" for fault in chosen)
    gc.unfreeze()
    return dict(outcomes)


def misuses(model: Any, inputs: dict[str, Any], method: Any) -> dict[str, list[tuple[Callable[[], Any], type]]]:
    """What must be refused while the model is being pruned, and the error that says so."""
    before = snapshot(model)
    with vitcop.prune(model, method):
        sites = installed(model, before)
        with torch.no_grad():
            old = model(**inputs, use_cache=True).past_key_values
    parts: list[nn.Module] = [model, model.model, model.model.language_model, model.model.language_model.layers[0]]
    last = inputs["input_ids"][:, -1:]
    return {
        "a second pruning of the model": [(lambda m=m: vitcop.attach(m, method), ValueError) for m in parts[:2]],
        "a copy": [(lambda part=part: copy.deepcopy(part), TypeError) for part in parts],
        "a pickle": [(lambda part=part: ForkingPickler.dumps(part), TypeError) for part in parts],
        "torch.save of the model": [(lambda part=part: torch.save(part, io.BytesIO()), TypeError) for part in parts],
        "a copy of a hook": [(lambda site=site: copy.deepcopy(site.original), TypeError) for site in sites],
        "a pruned cache afterwards": [(lambda: model(last, past_key_values=old), RuntimeError)],
    }


def refuse(family: Family) -> dict[str, dict[str, int]]:
    """Of each misuse: how often a clear error left everything as it was, and what happened otherwise."""
    method = family.method(**OPTIONS)
    model, inputs = family.build(layers=LAYERS), family.batch([family.prompt(1)])
    plain, before = answer(model, inputs), snapshot(model)
    found: dict[str, dict[str, int]] = {}
    for name, attempts in misuses(model, inputs, method).items():
        outcomes: Counter[str] = Counter()
        for attempt, error in attempts:
            outcomes[_refused(attempt, error, model, inputs, method, name.endswith("afterwards"))] += 1
        found[name] = dict(outcomes)
    assert snapshot(model) == before and torch.equal(answer(model, inputs), plain)
    return found


def _refused(
    attempt: Callable[[], Any], error: type, model: Any, inputs: dict[str, Any], method: Any, afterwards: bool
) -> str:
    with vitcop.prune(model, method):
        expected = answer(model, inputs)
        within = snapshot(model)
        said = "" if afterwards else _said(attempt, error)
        if snapshot(model) != within or not torch.equal(answer(model, inputs), expected):
            return "the pruned model has changed"
    return (_said(attempt, error) if afterwards else said) or "clear error"


def _said(attempt: Callable[[], Any], error: type) -> str:
    try:
        attempt()
    except error as raised:
        return "" if "expected" in str(raised) else f"another error: {raised}"
    return "no error"


def section(found: dict[str, Any]) -> str:
    """Both tables: faults, which leave nothing, and misuses, which are refused."""
    families = list(next(iter(found["faults"].values())))
    total = sum(sum(outcomes.values()) for kinds in found["faults"].values() for outcomes in kinds.values())
    good = sum(outcomes.get("restored", 0) for kinds in found["faults"].values() for outcomes in kinds.values())
    which = "every" if found["every"] == 1 else f"every {found['every']}th"
    lines = [
        "## Faults",
        "",
        f"An exception in {which} call of all hooks and wrapped methods, and of the model's own modules, while a prompt"
        f" is answered: {good:,} of {total:,} faults left a model that goes on pruning with the same bits in the block "
        "and is as it was after it, hooks, attributes, configuration, answers and memory. Restored, of all:",
        "",
        *_table(found["faults"], families, "restored"),
        "",
        "What would do harm later is refused with an error that says what to do, before anything has changed. Refused, "
        "of all attempts:",
        "",
        *_table(found["misuses"], families, "clear error"),
        "",
        record.origin(found),
        "",
    ]
    return "\n".join(lines)


def _table(rows: dict[str, dict[str, dict[str, int]]], families: list[str], wanted: str) -> list[str]:
    def cell(outcomes: dict[str, int]) -> str:
        return f"{outcomes.get(wanted, 0)} of {sum(outcomes.values())}"

    head = [f"| | {' | '.join(families)} |", f"|---|{'---|' * len(families)}"]
    return head + [f"| {name} | {' | '.join(cell(row[family]) for family in families)} |" for name, row in rows.items()]


def main(
    every: Annotated[int, typer.Option(min=1, help="Inject only every n-th fault.")] = 1,
) -> None:
    """Inject every fault into every family; write benchmarks/results/evidence/faults.json."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"every": every, "faults": {}, "misuses": {}}
    for name, family in FAMILIES.items():
        for kind, (error, within) in FAULTS.items():
            outcomes = inject(family, error, within, every)
            found["faults"].setdefault(kind, {})[name] = outcomes
            typer.echo(f"{name}, {kind}: {outcomes}")
        for kind, outcomes in refuse(family).items():
            found["misuses"].setdefault(kind, {})[name] = outcomes
            typer.echo(f"{name}, {kind}: {outcomes}")
    record.keep("faults", COMMAND if every == 1 else f"{COMMAND} --every {every}", found)


if __name__ == "__main__":
    typer.run(main)
