"""`python -m benchmarks.evidence.fuzz`: run cases, count verdicts, write the result."""

import time
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.evidence import record

from .campaign import MOST_MISMATCHES, Tally, chunks, run
from .cases import OPS, Case, case_of
from .implementations import NAMES, titles
from .judge import judge

CASES = 100_000


def main(
    cases: Annotated[int, typer.Option(help="In all; every op gets its share.")] = CASES,
    seed: Annotated[int, typer.Option(help="Of the first case of every op.")] = 0,
    ops: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(OPS),
    implementations: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(NAMES),
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so long.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    replay: Annotated[str | None, typer.Option(help="Run this one case, op:seed.")] = None,
    write: Annotated[bool, typer.Option(help="Write the result file.")] = True,
) -> None:
    """Fuzz the ops against a float64 truth."""
    torch.set_num_threads(1)
    names = chosen(implementations, NAMES, "--implementations")
    if replay is not None:
        op, _, number = replay.partition(":")
        chosen(op, OPS, "--replay")
        raise typer.Exit(run_one(case_of(op, int(number)), names))

    work = chunks(chosen(ops, OPS, "--ops"), cases, seed)
    total = sum(end - first for _, first, end in work)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    start, told = time.monotonic(), [0]
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("no mismatch", total=total)

        def advance(tally: Tally, count: int) -> None:
            wrong = len(tally.mismatches)
            for what in tally.mismatches[told[0] : MOST_MISMATCHES]:
                progress.console.print(
                    f"{what['replay']}  # {what['implementation']}: {what['why']}", markup=False, soft_wrap=True
                )
            told[0] = wrong
            progress.update(task, advance=count, description=f"{wrong} mismatches" if wrong else "no mismatch")
            done = sum(tally.cases.values())
            if not progress.console.is_terminal and done * 20 // total > (done - count) * 20 // total:  # a log
                print(f"{done} of {total} cases, {wrong} mismatches", flush=True)

        tally = run(work, names, jobs, None if minutes is None else 60 * minutes, advance)
    found = tally.found()
    structures: dict[str, int] = {}
    for (_, _, structure, name, _), count in sorted(tally.verdicts.items()):
        if name == names[0]:  # every case once
            for part in structure.split("; "):
                structures[part] = structures.get(part, 0) + count
    each = max(tally.cases.values())
    about = dict(seeds=[seed, seed + each - 1], seconds=round(time.monotonic() - start), numpy=np.__version__)
    about |= dict(titles=titles())
    found = about | dict(structures=structures) | found
    print(f"{found['cases']} cases, {found['answers']}")
    if write:
        print(record.keep("fuzz", command(cases, seed, ops, implementations, minutes), found))
    raise typer.Exit(found["answers"]["mismatch"] > 0)


def command(cases: int, seed: int, ops: str, implementations: str, minutes: float | None) -> str:
    parts = ["python -m benchmarks.evidence.fuzz", f"--cases {cases} --seed {seed}"]
    parts += [f"--ops {ops}"] if ops != ",".join(OPS) else []
    parts += [f"--implementations {implementations}"] if implementations != ",".join(NAMES) else []
    parts += [f"--minutes {minutes:g}"] if minutes is not None else []
    return " ".join(parts)


def chosen(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(known):
        raise typer.BadParameter(
            f"expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}", param_hint=option
        )
    return names


def run_one(case: Case, names: tuple[str, ...]) -> int:
    """Print the case and what became of it; 1 if something is wrong."""
    print(f"{case.op}:{case.seed}: {case.dtype}, {case.structure}, {case.tokens} tokens, {', '.join(case.marks)}")
    print("  " + ", ".join(f"{tuple(a.shape)}" if isinstance(a, torch.Tensor) else str(a) for a in case.args))
    print(f"  {case.kwargs}")
    judged = judge(case, names)
    for name, verdict in judged.verdicts.items():
        print(f"  {name}: {verdict.kind}, error {verdict.error:.3g} of the bound. {verdict.why}")
    for (a, b), what in judged.pairs.items():
        print(f"  {a} and {b}: {what}")
    return int(any(verdict.kind == "mismatch" for verdict in judged.verdicts.values()))


if __name__ == "__main__":
    typer.run(main)
