"""Before any timing: values against float64, the same bits again and again, from graphs, and without waiting.

An op that fails one check is timed nowhere, neither alone nor inside a stage or a model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cost.cases import Case
from vitcop_kernels.bench.truth import bits, same_bits, tensors, verify

from .budget import Budget
from .chains import Call, Chain, build
from .device import Device

Record = dict[str, Any]


def check_values(device: Device, chain: Chain, call: Call) -> str:
    """Each op on what it was really given, so that an error is blamed on the op that made it."""

    def verifying(op: str, *args: Any, **kwargs: Any) -> Any:
        for t in (t for t in args if isinstance(t, Tensor)):
            _poison(t)
        got = call(op, *args, **kwargs)
        try:
            verify(op, args, kwargs, got)
        except AssertionError as error:
            raise Wrong(op, str(error)) from error
        return got

    chain.run(verifying, *chain.inputs)
    return "float64 reference"


class Wrong(AssertionError):
    def __init__(self, op: str, what: str) -> None:
        super().__init__(f"{op}: {what.removeprefix(f'{op}: ')}")


def _poison(like: Tensor) -> None:
    """Leave NaN in freed memory: what an op forgets to write shows."""
    torch.empty(max(like.numel(), 1), dtype=torch.float32, device=like.device).fill_(float("nan"))


def check_repeats(device: Device, chain: Chain, call: Call, count: int) -> str:
    """The same bits every time; the outcome is read once, at the end."""
    first = [bits(t).clone() for t in tensors(chain.run(call, *chain.inputs))]
    changed = torch.zeros((), dtype=torch.bool, device=device.device)
    for k in range(count):
        if k % 10 == 0:
            _poison(chain.inputs[0])
        for a, b in zip(first, tensors(chain.run(call, *chain.inputs)), strict=True):
            changed |= (a != bits(b)).any()
    if bool(changed):
        raise AssertionError(f"other bits in {count} runs on the same inputs")
    return f"{count} runs"


def check_graph(device: Device, chain: Chain, call: Call) -> str:
    """Captured, outputs poisoned, replayed: the eager bits; and again with other inputs in the same places."""
    inputs = [t.clone() for t in chain.inputs]
    replay, out = device.capture(lambda: chain.run(call, *inputs))
    for turn in range(2):
        if turn == 1:
            for t in inputs:
                if t.is_floating_point() and t.dim() >= 2:
                    t.copy_(t.flip(-2) if t.shape[-2] > 1 else t.flip(-1))
        for t in tensors(out):
            t.view(-1).view(torch.uint8).fill_(0x77) if t.is_contiguous() else t.fill_(7)
        replay()
        device.synchronize()
        kept = [bits(t).clone() for t in tensors(out)]
        want = [bits(t) for t in tensors(chain.run(call, *inputs))]
        if not same_bits(kept, want):
            raise AssertionError(f"a replay gives other bits than a call, inputs {turn + 1}")
    return "2 replays"


def check_no_sync(device: Device, chain: Chain, call: Call) -> str:
    with device.no_sync():
        chain.run(call, *chain.inputs)
    return "one call"


def check_launch_shapes(device: Device, chain: Chain, call: Call) -> str:
    """vic_cluster in one cooperative launch and in a launch a phase: the same bits."""
    with device.one_launch(True):
        together = chain.run(call, *chain.inputs)
    with device.one_launch(False):
        by_phases = chain.run(call, *chain.inputs)
    if not same_bits(together, by_phases):
        raise AssertionError("one launch and a launch a phase give other bits")
    return "both launched"


def run_checks(
    device: Device,
    cases: list[Case],
    call: Call,
    budget: Budget,
    repeats: int,
    records: list[Record],
    wrong: dict[str, str],
) -> None:
    """Adds a record a check to `records`, and the ops that failed one, with the reason, to `wrong`."""
    seen: set[str] = set()

    def record(case: Case, name: str, check: Callable[[], str], ops: set[str]) -> None:
        found, error = budget.piece(f"check: {name}, {case.name}", check)
        entry: Record = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "check": name}
        if error is None:
            entry |= {"status": "passed", "detail": found}
        elif error["status"] == "failed" and error["why"].startswith("NotImplementedError"):
            entry |= {"status": "skipped", "why": error["why"]}
        else:
            entry |= error
            if error["status"] == "failed":
                blamed = _blamed(error, ops)
                for op in blamed:
                    wrong.setdefault(op, f"{name} at {case.name}: {error['why'][:300]}")
        records.append(entry)

    # Values of everything first: what the time runs out on is the least of it.
    chains: list[Chain] = []
    for case in cases:
        chain, error = budget.piece(f"inputs of {case.name}", lambda case=case: build(case, device.device))
        if error is not None:
            records.append({"op": case.op, "shape": case.shape, "dtype": case.dtype, "check": "inputs"} | error)
            if error["status"] == "failed":
                wrong.setdefault(case.op, f"inputs of {case.name}: {error['why'][:300]}")
            continue
        chains.append(chain)
        record(case, "float64", lambda chain=chain: check_values(device, chain, call), chain.ops)
    for chain in chains:
        case = chain.case
        record(case, "graph", lambda chain=chain: check_graph(device, chain, call), chain.ops)
        record(case, "no sync", lambda chain=chain: check_no_sync(device, chain, call), chain.ops)
        if case.op.startswith("vic_cluster"):
            name = "one launch = phases"
            record(case, name, lambda chain=chain: check_launch_shapes(device, chain, call), chain.ops)
    for chain in chains:
        if chain.case.op not in seen:
            seen.add(chain.case.op)
            record(
                chain.case, "repeats", lambda chain=chain: check_repeats(device, chain, call, repeats), chain.ops
            )  # fmt: skip


def _blamed(error: dict[str, str], ops: set[str]) -> set[str]:
    """The op that a failed value check names, else all ops of the chain."""
    named = {op for op in ops if error["why"].startswith(f"Wrong: {op}: ")}
    return named or ops
