"""Determinism: 10,000 repeats of every op, batches, threads, permuted tokens. `python -m verification.determinism`."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor

from vitcop_kernels.testing.implementations import implementation, titles
from vitcop_kernels.testing.op import Case
from vitcop_kernels.testing.permutation import Shuffle
from vitcop_kernels.testing.table import TABLE, TRITON_EVERY, case_of
from vitcop_kernels.testing.verdicts import flat, same

from . import record

Counts = dict[str, int]
THREADS = range(1, 9)


def kernel_cases(op: str, count: int, seed: int = 0, small: bool = False) -> list[Case]:
    """Cases of the kernels' dtypes: float64 goes to the reference, whose matrix product is a library's."""
    found: list[Case] = []
    while len(found) < count:
        case = case_of(op, seed * TRITON_EVERY if small else seed)
        seed += 1
        if case.dtype != torch.float64 and case.tokens <= 1024:
            found.append(case)
    return found


def repeats(call: Callable[..., Any], cases: list[Case], times: int) -> Counts:
    """How many of `times` further runs, shared out over the cases, gave other bits than the first."""
    each, differ = -(-times // len(cases)), 0
    for case in cases:
        first = call(*case.args, **case.kwargs)
        differ += sum(not same(call(*case.args, **case.kwargs), first) for _ in range(each))
    return dict(runs=each * len(cases), differ=differ)


def threads(call: Callable[..., Any], cases: list[Case]) -> Counts:
    """Runs on 1 to 8 threads against the run on one."""
    before, runs, differ = torch.get_num_threads(), 0, 0
    try:
        for case in cases:
            torch.set_num_threads(1)
            first = call(*case.args, **case.kwargs)
            for count in THREADS:
                torch.set_num_threads(count)
                runs, differ = runs + 1, differ + (not same(call(*case.args, **case.kwargs), first))
    finally:
        torch.set_num_threads(before)
    return dict(runs=runs, differ=differ)


# --- batches ----------------------------------------------------------------------------------------------------------


def sample_of(case: Case, b: int | slice) -> tuple[Any, ...]:
    """The arguments of one sample alone, or of a slice of the batch."""
    args = list(case.args)
    whole = isinstance(b, slice)
    for k in batched_arguments(case):
        if isinstance(args[k], list):
            args[k] = [t if t.shape[0] == 1 and whole else t[0 if t.shape[0] == 1 else b] for t in args[k]]
        else:
            args[k] = args[k][b]
    return tuple(args)


def batched_arguments(case: Case) -> Iterator[int]:
    """Positions of what is there and has a batch: one sheet of positions may serve all samples."""
    for k in TABLE[case.op].batched:
        if k < len(case.args) and case.args[k] is not None:
            shared = case.op == "vic_cluster" and k == 1 and case.args[k].dim() == 2
            if not shared:
                yield k


def together(case: Case, order: list[int]) -> tuple[Any, ...]:
    """The arguments of a batch of the samples in `order`, which may repeat."""
    index = torch.tensor(order)
    args = list(case.args)
    for k in batched_arguments(case):
        if isinstance(args[k], list):
            args[k] = [t if t.shape[0] == 1 else t[index] for t in args[k]]
        else:
            args[k] = args[k][index]
    return tuple(args)


def batched_cases(op: str, count: int, small: bool = False) -> list[Case]:
    found, seed = [], 0
    while len(found) < count:
        case = kernel_cases(op, 1, seed, small)[0]
        seed = (case.seed // TRITON_EVERY if small else case.seed) + 1
        lead = case.args[0].shape
        if len(lead) == TABLE[op].rank and lead[0] >= 2:
            found.append(case)
    return found


def batches(call: Callable[..., Any], cases: list[Case]) -> Counts:
    """Every sample alone, in a batch of one, and at several places of batches of 2 to 7, against its batch."""
    runs = differ = 0
    for case in cases:
        whole = flat(call(*case.args, **case.kwargs))
        size = case.args[0].shape[0]

        def check(answer: list[Tensor], expected: list[Tensor]) -> None:
            nonlocal runs, differ
            runs, differ = runs + 1, differ + (not same(answer, expected))

        for b in range(size):
            check(flat(call(*sample_of(case, b), **case.kwargs)), [t[b] for t in whole])
        for order in ([0], [size - 1, 0], [1, 0, 1], [0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0, 1]):
            answer = flat(call(*together(case, order), **case.kwargs))
            for place, b in enumerate(order):
                check([t[place] for t in answer], [t[b] for t in whole])
    return dict(runs=runs, differ=differ)


def ragged(call: Callable[..., Any], cases: list[Case]) -> Counts:
    """vic_cluster_varlen: every sample packed alone has the bits that it has among the others."""
    runs = differ = 0
    for case in cases:
        x, places, cu, most, d_c, tau, k, counts = case.args
        labels, centers, parent, rho, delta = call(*case.args, **case.kwargs)
        for b in range(len(cu) - 1):
            part = slice(int(cu[b]), int(cu[b + 1]))
            if part.start == part.stop:
                continue
            alone = torch.tensor([0, part.stop - part.start], dtype=cu.dtype)
            own = None if counts is None else counts[b : b + 1]
            answer = call(
                x[part], None if places is None else places[part], alone, most, d_c, tau, k, own, **case.kwargs
            )
            expected = [labels[part], centers[b : b + 1], parent[part], rho[part], delta[part]]
            runs, differ = runs + 1, differ + (not same(answer, expected))
    return dict(runs=runs, differ=differ)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def native(op: str, times: int, cases: int) -> dict[str, Any]:
    call, drawn = implementation("native", op), kernel_cases(op, cases)
    found = dict(repeats=repeats(call, drawn, times), threads=threads(call, drawn))
    return found | dict(batches=of_batches(op, call, cases, small=False))


def of_batches(op: str, call: Any, cases: int, small: bool) -> dict[str, int]:
    if not TABLE[op].batched:
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
    for op in track(list(TABLE), "ops"):
        each = dict(native=native(op, times, cases), triton=triton(op, interpreted))
        call, outcomes = implementation("native", op), Counter[str]()
        for seed in range(3 * cases):
            n = (12, 60, 300)[seed % 3]
            outcomes[TABLE[op].permute(call, Shuffle(n, seed), DTYPES[seed // 3 % 3])] += 1
        ops[op] = dict(implementations=each, permuted=dict(outcomes))
        print(op, ops[op])
    differ = sum(c["differ"] for each in ops.values() for of in each["implementations"].values() for c in of.values())
    differ += sum(each["permuted"].get("another answer", 0) for each in ops.values())
    if write:
        options = f"--times {times} --interpreted {interpreted} --cases {cases}"
        found = dict(titles=titles(), ops=ops)
        print(record.keep("determinism", f"python -m verification.determinism {options}", found))
    raise typer.Exit(differ > 0)


if __name__ == "__main__":
    typer.run(main)
