"""Plant bugs and record their fates: `python -m benchmarks.evidence.mutants [--only C++] [--op key_norms] [...]`."""

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


def run(
    only: Annotated[list[str] | None, typer.Option(help="Layers: reference, checks, C++, Triton.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="Ops.")] = None,
    what: Annotated[str, typer.Option(help="Only bugs whose description has this text; nothing is recorded.")] = "",
    python_sample: Annotated[int, typer.Option(help="How many of the bugs in references and checks.")] = 120,
    minutes: Annotated[float, typer.Option(help="Start no further bug after this time.")] = 40,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which tests that have not ended count as failed.")
    ] = 300,
) -> None:
    chosen, sizes = population(python_sample)
    chosen = [b for b in chosen if (not only or b.layer in only) and (not op or b.op in op) and what in b.what]
    runner.copy_tree()
    if any(bug.layer in ("C++", "checks") for bug in chosen):
        runner.configure()
    start, fates = time.monotonic(), []
    for bug in track(chosen, description="mutants"):
        if time.monotonic() - start > 60 * minutes:
            break
        fates.append({"op": bug.op, "layer": bug.layer, "file": bug.file, "what": bug.what} | runner.fate(bug, timeout))
        if fates[-1]["fate"] != "killed":
            print(f"{fates[-1]['fate']}: {bug.op} ({bug.layer}): {bug.what} {fates[-1]['by']}", flush=True)
    if not what:
        from .. import record  # loads vitcop_kernels: see __init__.py

        found = {"seed": SEED, "population": sizes, "chosen": len(chosen), "minutes": (time.monotonic() - start) / 60}
        record.keep("mutants", COMMAND, found | {"mutants": fates})


if __name__ == "__main__":
    typer.run(run)
