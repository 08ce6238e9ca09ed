"""Speed of the ops and stages that came out right, beside what else does their work and beside the floor."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cost.cases import Case, parts
from benchmarks.cost.estimate import estimate
from benchmarks.cost.gpus import GPUS, gpu_named
from benchmarks.cost.work import Chip, work_of

from .budget import Budget
from .chains import Call, Chain, build
from .device import Device
from .timing import measure

Record = dict[str, Any]


def measure_ops(
    device: Device,
    cases: list[Case],
    call: Call,
    wrong: dict[str, str],
    budget: Budget,
    found: dict[str, Any],
    seconds: float,
    records: list[Record],
) -> list[tuple[Chain, Record]]:
    """Adds a record a case: timings of each way, or why there are none. Our side of everything comes first.

    Returns what `measure_compiled` goes on with.
    """
    chains: list[tuple[Chain, Record]] = []
    for case in cases:
        record: Record = {
            "op": case.op, "shape": case.shape, "dtype": case.dtype, "where": case.where, "target_us": case.target_us,
            "ways": {},
        }  # fmt: skip
        records.append(record)
        known, error = budget.piece(f"cost of {case.name}", lambda case=case: facts(device, case, found))
        if error is not None:
            record |= error
            continue
        record |= known
        bad = sorted(op for op in ops_of(case) if op in wrong)
        if bad:
            record |= {"status": "refused", "why": "wrong: " + "; ".join(f"{op}: {wrong[op]}" for op in bad)}
            continue

        def ours(case: Case = case, record: Record = record) -> None:
            chain = build(case, device.device)
            chains.append((chain, record))
            ways = record["ways"]
            ways["vitcop"] = measure(device, lambda *inputs: chain.run(call, *inputs), chain.inputs, seconds)
            record["rates"] = rates(record, found)

        _, error = budget.piece(f"time: {case.name}", ours)
        record |= {"status": "measured"} if error is None else error
    chains = [(chain, record) for chain, record in chains if record["status"] == "measured"]
    for chain, record in chains:
        for name in chain.others:
            record["ways"][name] = _other(device, chain, name, budget, seconds)
    return chains


def measure_compiled(device: Device, chains: list[tuple[Chain, Record]], budget: Budget, seconds: float) -> None:
    """torch.compile of the eager side. To come last: a kernel of the compiler's that trips an assertion on the device
    leaves nothing that works in this process."""
    done: set[str] = set()
    lost = ""
    for chain, record in chains:
        if "eager" not in chain.others:
            continue
        if lost:
            record["ways"]["compiled"] = {"status": "not measured", "why": lost}
            continue
        found = record["ways"]["compiled"] = _compiled(device, chain, done, budget, seconds)
        if "device-side assert" in found.get("why", ""):
            lost = f"the device is lost to this process since {chain.case.name}, compiled"


def ops_of(case: Case) -> set[str]:
    return {case.op, *(part.op for part in parts(case))}


def facts(device: Device, case: Case, found: dict[str, Any]) -> Record:
    """Bytes and FLOPs from the cost model, its estimate where it knows the GPU, and the floor at measured rates."""
    work = work_of(case, Chip(device.sms, torch.version.hip is not None))
    gpu = gpu_named(device.name) if not device.dry_run else GPUS["H200"]
    record: Record = {"bytes": work.bytes, "flops": work.flops, "launches_expected": work.launches}
    if gpu is not None:
        guess = estimate(case, gpu)
        record |= {"estimate_us": guess.us, "estimate_for": gpu.name, "estimate_binds": guess.binds}
    matrix = sum(count for unit, count in work.flops.items() if unit in ("bf16", "tf32"))
    record["floor_us"] = max(
        work.bytes / (found["copy_gbs"] * 1e3), matrix / (found["matmul_tflops"]["bfloat16"] * 1e6)
    ) + found["launch_us"] * (1 + work.exchanges)  # fmt: skip
    return record


def rates(record: Record, found: dict[str, Any]) -> dict[str, float]:
    """Of the cold graph: GB/s and TFLOP/s of the work that cannot be avoided, as shares of what was measured."""
    us = record["ways"]["vitcop"]["graph cold"]["p50"]
    gbs, tflops = record["bytes"] / us / 1e3, sum(record["flops"].values()) / us / 1e6
    return {
        "gbs": gbs,
        "percent_of_copy": 100 * gbs / found["copy_gbs"],
        "tflops": tflops,
        "percent_of_matmul": 100 * tflops / found["matmul_tflops"]["bfloat16"],
        "over_floor": us / record["floor_us"],
    }


def _other(device: Device, chain: Chain, name: str, budget: Budget, seconds: float) -> Record:
    case = chain.case
    if name == "as the authors wrote it":
        need = 4 * 4 * case["N"] ** 2 * case["D"]  # a difference of [N, N, D], its square, and what torch holds
        if need > device.free_bytes():
            return {"status": "not measured", "why": f"memory: needs about {need / 2**30:.0f} GiB"}
    return _timed(device, chain, name, chain.others[name], budget, seconds, name not in chain.no_graph)


def _compiled(device: Device, chain: Chain, done: set[str], budget: Budget, seconds: float) -> Record:
    """torch.compile of the eager side; compiling costs seconds, so one shape of each op."""
    if chain.case.op in done:
        return {"status": "not measured", "why": "one shape of each op is compiled"}
    done.add(chain.case.op)
    return _timed(device, chain, "compiled", device.compile(chain.others["eager"]), budget, seconds, True)


def _timed(
    device: Device,
    chain: Chain,
    name: str,
    function: Callable[..., Any],
    budget: Budget,
    seconds: float,
    graphs: bool,
) -> Record:
    def run() -> Record:
        try:
            return measure(device, function, chain.inputs, seconds / 2, graphs)
        except RuntimeError as error:  # it waits for the device, say
            if not graphs:
                raise
            found = measure(device, function, chain.inputs, seconds / 2, graphs=False)
            return found | {"graph": f"not captured: {str(error)[:200]}"}

    found, error = budget.piece(f"time: {name}, {chain.case.name}", run)
    return found if error is None else error
