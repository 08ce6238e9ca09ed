"""Speed of the ops and stages that came out right, compared with what else does their work and with the roofline."""

from collections.abc import Callable
from typing import Any

from vitcop_kernels.bench.device import Device
from vitcop_kernels.testing.op import Shape

from .budget import Budget
from .chains import Chain, build, checked, ours
from .timing import measure

Record = dict[str, Any]


def measure_ops(
    device: Device,
    cases: list[tuple[str, Shape]],
    budget: Budget,
    found: dict[str, Any],
    seconds: float,
    records: list[Record],
) -> list[tuple[Chain, Record]]:
    """Adds a record a case: timings of each way, or why there are none. Our side of everything comes first.

    Every answer is held to the truth before it is timed; an op that is wrong once is timed nowhere after.
    """
    chains: list[tuple[Chain, Record]] = []
    for name, shape in cases:
        dims = " ".join(f"{dim}={size}" for dim, size in shape.dims.items())
        about = {"op": name, "shape": dims, "dtype": shape.dtype, "where": shape.where, "target_us": shape.target_us}
        record: Record = about | {"ways": {}}
        records.append(record)

        def measured(name: str = name, shape: Shape = shape, record: Record = record) -> None:
            chain = build(name, shape, device.device)
            chain.run(checked(ours), *chain.inputs)
            with device.no_sync():
                chain.run(ours, *chain.inputs)
            record["ways"]["vitcop"] = measure(device, lambda *inputs: chain.run(ours, *inputs), chain.inputs, seconds)
            record |= roofline(chain, found, record["ways"]["vitcop"]["graph cold"]["p50"])
            chains.append((chain, record))

        _, error = budget.piece(f"{name} {dims}", measured)
        record |= {"status": "measured"} if error is None else error
    for chain, record in chains:
        for other in chain.others:
            record["ways"][other] = _other(device, chain, other, budget, seconds)
    return chains


def measure_compiled(device: Device, chains: list[tuple[Chain, Record]], budget: Budget, seconds: float) -> None:
    """torch.compile of the eager side, one shape of each. To come last: a kernel of the compiler's that trips an
    assertion on the device leaves nothing that works in this process."""
    done: set[str] = set()
    for chain, record in chains:
        if "eager" in chain.others and chain.name not in done:
            done.add(chain.name)
            way = device.compile(chain.others["eager"])
            found = record["ways"]["compiled"] = _timed(device, chain, "compiled", way, budget, seconds, True)
            if "device-side assert" in found.get("why", ""):
                return


def roofline(chain: Chain, found: dict[str, Any], us: float) -> Record:
    """Of the cold graph: GB/s and TFLOP/s of the work that cannot be avoided, as shares of what was measured."""
    if not chain.bytes:
        return {}
    peak = found["matmul_tflops"]["bfloat16"]
    floor = max(chain.bytes / (found["copy_gbs"] * 1e3), chain.flops / (peak * 1e6)) + found["launch_us"]
    gbs, tflops = chain.bytes / us / 1e3, chain.flops / us / 1e6
    shares = {"percent_of_copy": 100 * gbs / found["copy_gbs"], "percent_of_matmul": 100 * tflops / peak}
    rates = {"gbs": gbs, "tflops": tflops, **shares, "over_floor": us / floor}
    return {"bytes": chain.bytes, "flops": chain.flops, "floor_us": floor, "rates": rates}


def _other(device: Device, chain: Chain, name: str, budget: Budget, seconds: float) -> Record:
    if name == "as the authors wrote it":
        tokens, width = chain.inputs[0].shape[-2:]
        need = 4 * 4 * tokens**2 * width  # a difference of [N, N, D], its square, and what torch holds
        if need > device.free_bytes():
            return {"status": "not measured", "why": f"memory: needs about {need / 2**30:.0f} GiB"}
    return _timed(device, chain, name, chain.others[name], budget, seconds, name not in chain.no_graph)


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

    found, error = budget.piece(f"{name}, {chain.name} {chain.dims}", run)
    return found if error is None else error
