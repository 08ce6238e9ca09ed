"""Counting runs that gave other bits: of repeats, of threads, of samples alone and in batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.fuzz.cases import TRITON_EVERY, Case, case_of
from benchmarks.evidence.fuzz.judge import flat, same

Counts = dict[str, int]
THREADS = range(1, 9)
BATCHED = dict(  # which positional arguments have a batch dimension, where they are tensors
    attention_saliency=(0, 1, 2), compact_sequence=(0, 1, 2, 3, 4, 5), expand_plan=(0, 1, 2, 3, 4, 5), key_norms=(0,),
    key_proj=(0,), key_proj_norms=(0,), plan_tokens=(0, 1), segment_mean=(0, 1, 2, 3, 4),
    segment_mean_backward=(0, 1, 2, 3, 4), select_tokens=(0,), vic_cluster=(0, 1, 5, 6),
)  # fmt: skip


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
    for k in BATCHED[case.op]:
        if k >= len(args) or args[k] is None:
            continue
        if isinstance(args[k], list):
            args[k] = [t if t.shape[0] == 1 and isinstance(b, slice) else t[0 if t.shape[0] == 1 else b]
                       for t in args[k]]  # fmt: skip
        elif not (case.op == "vic_cluster" and k == 1 and args[k].dim() == 2):
            args[k] = args[k][b]
    return tuple(args)


def together(case: Case, order: list[int]) -> tuple[Any, ...]:
    """The arguments of a batch of the samples in `order`, which may repeat."""
    index = torch.tensor(order)
    args = list(case.args)
    for k in BATCHED[case.op]:
        if k >= len(args) or args[k] is None:
            continue
        if isinstance(args[k], list):
            args[k] = [t if t.shape[0] == 1 else t[index] for t in args[k]]
        elif not (case.op == "vic_cluster" and k == 1 and args[k].dim() == 2):
            args[k] = args[k][index]
    return tuple(args)


def batched_cases(op: str, count: int, small: bool = False) -> list[Case]:
    found, seed = [], 0
    while len(found) < count:
        case = kernel_cases(op, 1, seed, small)[0]
        seed = (case.seed // TRITON_EVERY if small else case.seed) + 1
        lead = case.args[0].shape
        dims = dict(
            attention_saliency=4, compact_sequence=3, expand_plan=2, key_norms=4, plan_tokens=2, select_tokens=2
        )
        if len(lead) == dims.get(op, 3) and lead[0] >= 2:
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
