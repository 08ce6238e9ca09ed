"""Plant bugs and record their fates: `python -m benchmarks.evidence.mutants [--only C++] [--op key_norms] [...]`."""

import json
import os
import random
import time
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch  # noqa: F401  (loaded once: every test run is a fork of this process)
import typer
from rich.progress import track

from . import cpp_bugs, python_bugs, runner, triton_bugs
from .bug import Bug

COMMAND = "python -m benchmarks.evidence.mutants"
SEED = 20261125


def population(sample: int) -> tuple[list[Bug], dict[str, int]]:
    """Every hand-written bug and a sample of those in Python, in a random order; how many there are of each layer."""
    draw = random.Random(SEED)
    in_python = list(python_bugs.bugs(runner.ROOT))
    sizes = {layer: sum(bug.layer == layer for bug in in_python) for layer in ("reference", "checks")}
    chosen = [*cpp_bugs.bugs(), *triton_bugs.bugs()]
    sizes |= {layer: sum(bug.layer == layer for bug in chosen) for layer in ("C++", "Triton")}
    chosen += draw.sample(in_python, min(sample, len(in_python)))
    draw.shuffle(chosen)
    return chosen, sizes


def earlier() -> tuple[dict[tuple[str, str, str], dict[str, str]], float]:
    """Fates on record, by op, layer and description, and the minutes that they took."""
    # Not through record.py: it loads vitcop_kernels, which the forks have to do for themselves.
    found = json.loads((runner.ROOT / "benchmarks" / "results" / "evidence" / "mutants.json").read_text())
    return {(m["op"], m["layer"], m["what"]): m for m in found["mutants"]}, found["minutes"]


def run(
    only: Annotated[list[str] | None, typer.Option(help="Layers: reference, checks, C++, Triton.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="Ops.")] = None,
    what: Annotated[str, typer.Option(help="Only bugs whose description has this text; nothing is recorded.")] = "",
    python_sample: Annotated[int, typer.Option(help="How many of the bugs in references and checks.")] = 120,
    minutes: Annotated[float, typer.Option(help="Start no further bug after this time.")] = 40,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which tests that have not ended count as failed.")
    ] = 300,
    resume: Annotated[
        bool,
        typer.Option(help="Keep what the record says was killed; plant what survived, and what it has not, again."),
    ] = False,
) -> None:
    chosen, sizes = population(python_sample)
    chosen = [b for b in chosen if (not only or b.layer in only) and (not op or b.op in op) and what in b.what]
    runner.copy_tree()
    if any(bug.layer in ("C++", "checks") for bug in chosen):
        runner.configure()
    start, fates, known, spent = time.monotonic(), [], *(earlier() if resume else ({}, 0.0))
    for bug in track(chosen, description="mutants"):
        last = known.get((bug.op, bug.layer, bug.what), {})
        if last.get("fate") in ("killed", "equivalent"):
            fates.append(last)
            continue
        if time.monotonic() - start > 60 * minutes:
            continue
        fates.append({"op": bug.op, "layer": bug.layer, "file": bug.file, "what": bug.what} | runner.fate(bug, timeout))
        if last.get("fate") == "survived":
            fates[-1]["first"] = "survived"
        if fates[-1]["fate"] != "killed":
            print(f"{fates[-1]['fate']}: {bug.op} ({bug.layer}): {bug.what} {fates[-1]['by']}", flush=True)
    if not what:
        from .. import record  # loads vitcop_kernels: see __init__.py

        took = spent + (time.monotonic() - start) / 60
        found = {"seed": SEED, "population": sizes, "chosen": len(chosen), "minutes": took}
        record.keep("mutants", COMMAND, found | {"mutants": fates})


if __name__ == "__main__":
    typer.run(run)
