"""Is this working tree slower than another revision? Both are measured in one run, request by request in turn.

    python -m benchmarks.compare REV [--ops vic_cluster ...] [--limit 1.03] [--rounds 11] [--processes 3] [--save FILE]

REV is checked out into a temporary worktree and its native module built there. Two processes, one of each tree, take
turns; several pairs of processes, one after the other, show what one process has by chance (where its code and buffers
lie, say), and the interval of the ratio counts that in. A row is a regression if the whole interval lies above the
limit, and does so again in new processes. The limit is above 1 because few pairs of processes sample that chance badly:
`python -m benchmarks.compare HEAD` shows what is left of it. Exit code 1: a regression, or a wrong answer of this tree.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import commit, machine
from vitcop_kernels.bench.statistics import grouped_summary
from vitcop_kernels.testing import table
from vitcop_kernels.testing.judge import verify
from vitcop_kernels.testing.op import Case

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).parent / "compare_worker.py"
NATIVE = ("csrc", "CMakeLists.txt", "setup.py")
LIMIT, SHORTEST = 1.03, 0.004
BASE, HEAD = "base", "head"


class Failed(RuntimeError):
    """What a worker answered instead of a result."""


class Worker:
    def __init__(self, root: Path) -> None:
        paths = os.pathsep.join([str(root), str(root / "python")])
        command, env = [sys.executable, str(WORKER), str(root)], os.environ | {"PYTHONPATH": paths}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=env, cwd=tempfile.gettempdir(), **pipes)
        self.native_error = self.ask("hello")["native_error"]

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps({"do": do, **more}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"the process ended with code {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply

    def close(self) -> None:
        self.process.communicate()  # closes its stdin, which ends it


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The revision in a worktree of its own, built, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="vitcop-compare-") as folder:
        root = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(root), revision)
        try:
            _build(root, revision)
            yield root
        finally:
            _git("worktree", "remove", "--force", str(root))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"compare: git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _build(root: Path, revision: str) -> None:
    """The native module of the same sources is the same module; of others it is built, which takes minutes."""
    same = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", revision, "--", *NATIVE], check=False)
    built = list((ROOT / "vitcop_kernels").glob("_C.*"))
    if same.returncode == 0 and built:
        shutil.copy(built[0], root / "vitcop_kernels")
        return
    print(f"building the native module of {revision} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"VITCOP_NATIVE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"compare: {revision} does not build:\n{done.stderr[-2000:]}")


def compare(
    base: Path,
    head: Path,
    todo: Sequence[Case],
    *,
    limit: float = LIMIT,
    rounds: int = 11,
    processes: int = 3,
    threads: int = 2,
) -> list[dict[str, Any]]:
    """A row a case, with a verdict; what looks like a regression is measured once more, and that measurement counts."""
    rows = _measure(base, head, todo, limit, rounds, processes, threads)
    again = [k for k, row in enumerate(rows) if row["verdict"] == "slower"]
    for k, second in zip(
        again, _measure(base, head, [todo[k] for k in again], limit, rounds, processes, threads), strict=True
    ):
        rows[k] = second | {"first": rows[k]}
    return rows


def _measure(
    base: Path, head: Path, todo: Sequence[Case], limit: float, rounds: int, processes: int, threads: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"op": case.op, "shape": case.shape, "dtype": case.dtype_name, "seconds": {BASE: [], HEAD: []}} for case in todo
    ]
    if not todo:
        return rows
    for index in range(processes):
        workers = {BASE: Worker(base), HEAD: Worker(head)}
        try:
            if (workers[BASE].native_error is None) != (workers[HEAD].native_error is None):
                raise SystemExit(
                    "compare: expected native kernels on both sides or on neither; "
                    + ", ".join(f"{name}: {w.native_error or 'native'}" for name, w in workers.items())
                )
            for case, row in zip(todo, rows, strict=True):
                if "verdict" not in row:
                    print(f"pair {index + 1} of {processes}: {case.name}", file=sys.stderr, flush=True)
                    _one_pair(workers, case, row, rounds, threads)
        finally:
            for worker in workers.values():
                worker.close()
    for row in rows:
        if "verdict" not in row:
            pairs = zip(row["seconds"][HEAD], row["seconds"][BASE], strict=True)
            found = grouped_summary([[a / b for a, b in zip(*pair, strict=True)] for pair in pairs])
            row |= {"ratio": asdict(found), "verdict": verdict(found.low, found.high, limit)}
    return rows


def _one_pair(workers: dict[str, Worker], case: Case, row: dict[str, Any], rounds: int, threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inputs, answer = Path(folder) / "inputs.pt", Path(folder) / "answer.pt"
        torch.save({"op": case.op, "args": list(case.args), "kwargs": case.kwargs}, inputs)
        for name, worker in workers.items():
            try:
                worker.ask("load", path=str(inputs), answer=str(answer), threads=threads)
                verify(case.op, case.args, case.kwargs, torch.load(answer, weights_only=True))
            except (Failed, AssertionError) as error:
                row |= {"verdict": "wrong" if name == HEAD else "not compared", "why": f"{name}: {error}"}
                return
    once = max(workers[HEAD].ask("time", calls=1)["seconds"], 1e-7)
    calls = max(1, min(1000, int(SHORTEST / once)))
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for round_ in range(rounds):
        for name in list(workers)[:: -1 if round_ % 2 else 1]:
            seconds[name].append(workers[name].ask("time", calls=calls)["seconds"])
    for name, found in seconds.items():
        row["seconds"][name].append(found)


def verdict(low: float, high: float, limit: float) -> str:
    if low > limit:
        return "slower"
    return "faster" if high < 1 / limit else "same"


def failed(rows: Sequence[dict[str, Any]]) -> bool:
    return any(row["verdict"] in ("slower", "wrong") for row in rows)


def show(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table("op", "shape", "dtype", names[BASE], names[HEAD], "ratio", "95 % CI", "")
    for row in rows:
        start = (row["op"], row["shape"], row["dtype"])
        if "ratio" not in row:
            shown.add_row(*start, "", "", "", "", f"{row['verdict']}: {row['why']}")
            continue
        times = (f"{1e3 * _median(row['seconds'][name]):.3f} ms" for name in (BASE, HEAD))
        ratio = row["ratio"]
        style = {"slower": "red", "faster": "green"}.get(row["verdict"])
        interval = f"{ratio['low']:.3f}-{ratio['high']:.3f}"
        shown.add_row(*start, *times, f"{ratio['median']:.3f}", interval, row["verdict"], style=style)
    Console(width=None if sys.stdout.isatty() else 180).print(shown)


def _median(groups: list[list[float]]) -> float:
    return grouped_summary(groups).median


def default_cases(ops: Sequence[str] | None) -> list[Case]:
    """The shapes of the table, but for those that take a CPU seconds."""
    shapes = [(op, shape) for op, shape in table.real() if shape.dims.get("tokens", 0) <= 1024]
    return [table.build(op, shape.dims, shape.dtype) for op, shape in shapes if ops is None or op in ops]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--ops", nargs="+", choices=list(table.TABLE), help="(default: all)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest ratio that is no regression")
    parser.add_argument("--rounds", type=int, default=11, help="of one pair of processes")
    parser.add_argument("--processes", type=int, default=3, help="pairs of processes, one after the other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path, help="a file for the result, in JSON")
    options = parser.parse_args()
    todo = default_cases(options.ops)
    with checkout(options.revision) as base:
        given = {name: getattr(options, name) for name in ("limit", "rounds", "processes", "threads")}
        rows = compare(base, ROOT, todo, **given)
    names = {BASE: _git("rev-parse", "--short", options.revision), HEAD: commit()}
    show(rows, names)
    if options.save is not None:
        found = {"commits": names, "limit": options.limit, "machine": machine(), "rows": rows}
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(json.dumps(found, indent=1) + "\n")
    if failed(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
