"""Running many cases and counting what came out."""

import concurrent.futures
import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .cases import case_of
from .implementations import NAMES
from .judge import Judged, judge
from .verdicts import KINDS

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
        for mine, theirs in ((self.cases, other.cases), (self.verdicts, other.verdicts), (self.pairs, other.pairs),
                             (self.marks, other.marks), (self.long, other.long)):  # fmt: skip
            mine.update(theirs)  # type: ignore[arg-type]
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
            ops[op] = dict(cases=self.cases[op], most_tokens=self.tokens[op], beyond_512_tokens=self.long[op],
                           implementations=each, pairs=pairs)  # fmt: skip
        cells: dict[str, list[str]] = defaultdict(list)
        for op, dtype, structure, name in sorted({key[:4] for key in self.verdicts}):
            counts = "/".join(str(self.verdicts[op, dtype, structure, name, kind]) for kind in KINDS)
            cells[f"{op}, {dtype}, {structure}"].append(f"{name} {counts}")
        return dict(
            cases=sum(self.cases.values()), answers=self.by(), ops=ops, marks=dict(sorted(self.marks.items())),
            mismatches=self.mismatches[:MOST_MISMATCHES],
            cells={"op, dtype, structure": "exact/certified/mismatch"} | {k: ", ".join(v) for k, v in cells.items()},
        )  # fmt: skip


def replay(op: str, seed: int) -> str:
    return f"python -m benchmarks.evidence.fuzz --replay {op}:{seed}"


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
    work: Sequence[Chunk], names: Sequence[str], jobs: int = 1, seconds: float | None = None,
    on_chunk: Callable[[Tally, int], None] = lambda tally, count: None,
) -> Tally:  # fmt: skip
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
