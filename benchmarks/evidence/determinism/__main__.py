"""`python -m benchmarks.evidence.determinism`: 10,000 repeats of every op, batches, threads, permutations."""

from collections import Counter
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from benchmarks.evidence import record
from benchmarks.evidence.fuzz.cases import OPS
from benchmarks.evidence.fuzz.implementations import implementation, titles

from .permutations import permuted
from .runs import batched_cases, batches, kernel_cases, ragged, repeats, threads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def native(op: str, times: int, cases: int) -> dict[str, Any]:
    call, drawn = implementation("native", op), kernel_cases(op, cases)
    found = dict(repeats=repeats(call, drawn, times), threads=threads(call, drawn))
    return found | dict(batches=of_batches(op, call, cases, small=False))


def of_batches(op: str, call: Any, cases: int, small: bool) -> dict[str, int]:
    if op == "vic_cluster_varlen":
        return ragged(call, kernel_cases(op, cases, small=small))
    return batches(call, batched_cases(op, cases, small))


def triton(op: str, times: int) -> dict[str, Any]:
    call = implementation("triton", op)
    found = dict(repeats=repeats(call, kernel_cases(op, 2, small=True), times))
    return found | dict(batches=of_batches(op, call, 1, small=True))


def main(
    times: Annotated[int, typer.Option(help="Repeats of every op, C++.")] = 10_000,
    interpreted: Annotated[int, typer.Option(help="Repeats of every op, Triton's interpreter.")] = 20,
    cases: Annotated[int, typer.Option(help="Of each op, among which the repeats are shared out.")] = 20,
    write: Annotated[bool, typer.Option(help="Write the result file.")] = True,
) -> None:
    """Count runs that give other bits."""
    torch.set_num_threads(1)
    ops: dict[str, Any] = {}
    for op in track(OPS, "ops"):
        each = dict(native=native(op, times, cases), triton=triton(op, interpreted))
        call, outcomes = implementation("native", op), Counter[str]()
        for seed in range(3 * cases):
            n = (12, 60, 300)[seed % 3]
            outcomes[permuted(op, call, n, DTYPES[seed // 3 % 3], seed)] += 1
        ops[op] = dict(implementations=each, permuted=dict(outcomes))
        print(op, ops[op])
    differ = sum(c["differ"] for each in ops.values() for of in each["implementations"].values() for c in of.values())
    differ += sum(each["permuted"].get("another answer", 0) for each in ops.values())
    if write:
        options = f"--times {times} --interpreted {interpreted} --cases {cases}"
        print(
            record.keep(
                "determinism", f"python -m benchmarks.evidence.determinism {options}", dict(titles=titles(), ops=ops)
            )
        )
    raise typer.Exit(differ > 0)


if __name__ == "__main__":
    typer.run(main)
