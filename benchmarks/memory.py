"""Peak memory of one call, in a process of its own, so that nothing else is in it.

python -m benchmarks.memory '{"way": "vitcop", "op": "vic_cluster", "dims": {"tokens": 2048}}'
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class NotMeasured(RuntimeError):
    """Why there is no figure: a system without these counters, or not enough memory."""


def peak_mb(
    op: str,
    dims: dict[str, int],
    *,
    dtype: str = "float32",
    threads: int = 2,
    way: str = "vitcop",
    seconds: float = 300,
) -> float:
    """MB (2^20 bytes) that one call adds at its peak to what was there before: inputs, libraries, threads.

    way: "vitcop", "reference", or for vic_cluster "cdist" and "as written" of benchmarks.baselines.
    """
    ask = json.dumps({"way": way, "op": op, "dims": dims, "dtype": dtype, "threads": threads})
    command = [sys.executable, "-m", "benchmarks.memory", ask]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, cwd=Path(__file__).parent.parent
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"no answer in {seconds:.0f} s") from None
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise NotMeasured(last[:200])
    return float(run.stdout)


def _call(ask: dict[str, Any], dims: dict[str, int]) -> Any:
    from benchmarks import baselines
    from vitcop_kernels.bench import cases

    case = cases.build(ask["op"], dims, ask["dtype"])
    others = {"cdist": baselines.cluster_with_cdist, "as written": baselines.cluster_as_released}
    if ask["way"] == "vitcop":
        return case.run
    if ask["way"] == "reference":
        return case.reference
    x, *rest = case.args
    return lambda: [others[ask["way"]](sample, *rest) for sample in x]


def main() -> None:
    import torch

    ask = json.loads(sys.argv[1])
    torch.set_num_threads(ask["threads"])
    small = {name: min(size, 64) if name == "tokens" else size for name, size in ask["dims"].items()}
    small.pop("clusters", None)
    _call(ask, small)()  # libraries, threads
    call = _call(ask, ask["dims"])
    CLEAR.write_text("5")  # VmHWM starts again
    before = _high()
    call()
    print((_high() - before) / 1024)


def _high() -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
