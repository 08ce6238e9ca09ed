"""Peak memory of one call, in a process of its own, so that nothing else is in it: see `peak_mb`."""

import json
import subprocess
import sys
from pathlib import Path

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class NotMeasured(RuntimeError):
    """Why there is no figure: a system without these counters, or not enough memory."""


def peak_mb(op: str, dims: dict[str, int], *, threads: int = 2, seconds: float = 300) -> float:
    """MB (2^20 bytes) that one call adds at its peak to what was there before: inputs, libraries, threads."""
    ask = json.dumps({"op": op, "dims": dims, "threads": threads})
    command, root = [sys.executable, "-m", "benchmarks.memory", ask], Path(__file__).parent.parent
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, cwd=root)
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"no answer in {seconds:.0f} s") from None
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise NotMeasured(last[:200])
    return float(run.stdout)


def main() -> None:
    import torch

    from vitcop_kernels.testing import table

    ask = json.loads(sys.argv[1])
    torch.set_num_threads(ask["threads"])
    table.build(ask["op"], {"tokens": 64}).run()  # libraries, threads
    case = table.build(ask["op"], ask["dims"])
    CLEAR.write_text("5")  # VmHWM starts again
    before = _high()
    case.run()
    print((_high() - before) / 1024)


def _high() -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
