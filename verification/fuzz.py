"""Fuzzing every op against a float64 truth, and three implementations of it against each other.

`python -m verification.fuzz` runs 100,000 cases; `--replay op:seed` runs one. A case is drawn from its op and seed
alone (by numpy's generator, whose streams may change with numpy), and judged by the truth of the op's row in the table.
"""

import concurrent.futures
import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitcop_kernels.testing.implementations import NAMES, titles
from vitcop_kernels.testing.judge import Judged, judge
from vitcop_kernels.testing.op import Case
from vitcop_kernels.testing.table import TABLE, case_of
from vitcop_kernels.testing.verdicts import KINDS

from . import record

MOST_MISMATCHES = 200  # described one by one; all are counted


@dataclass
class Tally:
    cases: Counter[str] = field(default_factory=Counter)  # op
    verdicts: Counter[tuple[str, str, str, str, str]] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    long: Counter[str] = field(default_factory=Counter)  # op, cases of more than 512 tokens
    errors: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # op -> the most tokens
    mismatches: list[dict[str, Any]] = field(default_factory=list)

    def add(self, judged: Judged) -> None:
        case = judged.case
        dtype = str(case.dtype).removeprefix("torch.")
        self.cases[case.op] += 1
        self.marks.update(case.marks)
        self.long[case.op] += case.tokens > 512
        self.tokens[case.op] = max(self.tokens[case.op], case.tokens)
        for name, verdict in judged.verdicts.items():
            self.verdicts[case.op, dtype, case.structure, name, verdict.kind] += 1
            if verdict.kind != "mismatch":
                self.errors[case.op, name] = max(self.errors[case.op, name], verdict.error)
                continue
            what = dict(op=case.op, seed=case.seed, implementation=name, dtype=dtype, structure=case.structure)
            self.mismatches.append(what | dict(why=verdict.why, replay=replay(case.op, case.seed)))
        for (a, b), what_came in judged.pairs.items():
            self.pairs[case.op, f"{a} and {b}", what_came] += 1

    def merge(self, other: "Tally") -> None:
        for name in ("cases", "verdicts", "pairs", "marks", "long"):
            getattr(self, name).update(getattr(other, name))
        for most, others in ((self.errors, other.errors), (self.tokens, other.tokens)):
            for key, value in others.items():
                most[key] = max(most[key], value)  # type: ignore[index,assignment]
        self.mismatches += other.mismatches

    def by(self, *, op: str | None = None, implementation: str | None = None) -> dict[str, int]:
        """How many of each kind."""
        found = dict.fromkeys(KINDS, 0)
        for (of, _, _, name, kind), count in self.verdicts.items():
            if op in (None, of) and implementation in (None, name):
                found[kind] += count
        return found

    def found(self) -> dict[str, Any]:
        """As it is written to the result file."""
        implementations = [name for name in NAMES if any(key[3] == name for key in self.verdicts)]
        ops: dict[str, Any] = {}
        for op in sorted(self.cases):
            each = {}
            for name in implementations:
                counts = self.by(op=op, implementation=name)
                if sum(counts.values()):
                    each[name] = counts | dict(largest_error=round(self.errors[op, name], 4))
            pairs: dict[str, dict[str, int]] = defaultdict(dict)
            for (of, pair, what), count in self.pairs.items():
                if of == op:
                    pairs[pair][what] = count
            about = dict(cases=self.cases[op], most_tokens=self.tokens[op], beyond_512_tokens=self.long[op])
            ops[op] = about | dict(implementations=each, pairs=pairs)
        structures: Counter[str] = Counter()
        for (_, _, structure, name, _), count in self.verdicts.items():
            if name == implementations[0]:  # every case once
                structures.update(dict.fromkeys(structure.split("; "), count))
        found = dict(cases=sum(self.cases.values()), answers=self.by(), ops=ops, marks=dict(sorted(self.marks.items())))
        return found | dict(structures=dict(sorted(structures.items())), mismatches=self.mismatches[:MOST_MISMATCHES])


def replay(op: str, seed: int) -> str:
    return f"python -m verification.fuzz --replay {op}:{seed}"


Chunk = tuple[str, int, int]  # op, first seed, end


def chunks(ops: Sequence[str], cases: int, seed: int, size: int = 40) -> list[Chunk]:
    """The same number of cases for each op, rounded up; the ops take turns."""
    each = -(-cases // len(ops))
    return [(op, a, min(a + size, seed + each)) for a in range(seed, seed + each, size) for op in ops]


def run_chunk(chunk: Chunk, names: Sequence[str]) -> Tally:
    op, first, end = chunk
    tally = Tally()
    for seed in range(first, end):
        tally.add(judge(case_of(op, seed), names))
    return tally


def run(
    work: Sequence[Chunk],
    names: Sequence[str],
    jobs: int = 1,
    seconds: float | None = None,
    on_chunk: Callable[[Tally, int], None] = lambda tally, count: None,
) -> Tally:
    """All chunks, or those that were begun before `seconds` had passed; `on_chunk(so far, cases just judged)`."""
    total, end = Tally(), None if seconds is None else time.monotonic() + seconds
    for tally in _in_turn(work, names, end) if jobs == 1 else _side_by_side(work, names, jobs, end):
        total.merge(tally)
        on_chunk(total, sum(tally.cases.values()))
    return total


def _in_turn(work: Sequence[Chunk], names: Sequence[str], end: float | None) -> Iterator[Tally]:
    for chunk in work:
        if end is not None and time.monotonic() > end:
            return
        yield run_chunk(chunk, names)


def _side_by_side(work: Sequence[Chunk], names: Sequence[str], jobs: int, end: float | None) -> Iterator[Tally]:
    waiting, running = iter(work), {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        while True:
            for chunk in waiting:
                if end is not None and time.monotonic() > end:
                    break
                running[pool.submit(run_chunk, chunk, names)] = chunk
                if len(running) == 2 * jobs:
                    break
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                try:
                    yield future.result()
                except concurrent.futures.process.BrokenProcessPool as error:
                    where = "; ".join(f"{op}, seeds {a} to {b - 1}" for op, a, b in running.values())
                    raise SystemExit(f"a process died, on one of: {where}. Run them with --jobs 1 --seed") from error
                del running[future]


CASES = 100_000


def main(
    cases: Annotated[int, typer.Option(help="In all; every op gets its share.")] = CASES,
    seed: Annotated[int, typer.Option(help="Of the first case of every op.")] = 0,
    ops: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(TABLE),
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
        chosen(op, tuple(TABLE), "--replay")
        raise typer.Exit(run_one(case_of(op, int(number)), names))

    work = chunks(chosen(ops, tuple(TABLE), "--ops"), cases, seed)
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
    each = max(tally.cases.values())
    about = dict(seeds=[seed, seed + each - 1], seconds=round(time.monotonic() - start), numpy=np.__version__)
    about |= dict(titles=titles())
    found = about | found
    print(f"{found['cases']} cases, {found['answers']}")
    if write:
        print(record.keep("fuzz", command(cases, seed, ops, implementations, minutes), found))
    raise typer.Exit(found["answers"]["mismatch"] > 0)


def command(cases: int, seed: int, ops: str, implementations: str, minutes: float | None) -> str:
    parts = ["python -m verification.fuzz", f"--cases {cases} --seed {seed}"]
    parts += [f"--ops {ops}"] if ops != ",".join(TABLE) else []
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
