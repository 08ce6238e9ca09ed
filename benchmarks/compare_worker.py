"""A process that times the ops of one source tree, on request: `python compare_worker.py ROOT`; see compare.py.

It knows nothing of the tree but torch.ops.vitcop, so that any revision can be timed. Requests and replies are lines of
JSON on stdin and stdout.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(sys.argv[1]).resolve()
sys.path[:0] = [str(ROOT), str(ROOT / "python")]

import torch  # noqa: E402

import vitcop_kernels  # noqa: E402


class Worker:
    def __init__(self) -> None:
        self.call: Any = None

    def hello(self) -> dict[str, Any]:
        found = Path(vitcop_kernels.__file__).resolve()
        if not found.is_relative_to(ROOT):
            raise RuntimeError(f"vitcop_kernels comes from {found}, not from {ROOT}")
        return {"native_error": vitcop_kernels.native_error}

    def load(self, path: str, answer: str, threads: int) -> dict[str, Any]:
        """The op and its inputs; the answer is written for the other side to check."""
        torch.set_num_threads(threads)
        ask = torch.load(path, weights_only=True)
        op, args, kwargs = getattr(torch.ops.vitcop, ask["op"]), tuple(ask["args"]), ask["kwargs"]
        self.call = lambda: op(*args, **kwargs)
        found = self.call()
        torch.save(list(found) if isinstance(found, tuple) else found, answer)
        return {}

    def time(self, calls: int) -> dict[str, Any]:
        """Seconds a call; one call before wakes the threads and fills the caches that the other process emptied."""
        self.call()
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        return {"seconds": (time.perf_counter() - start) / calls}


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr  # what a revision prints is no reply
    worker = Worker()
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            reply = getattr(worker, ask.pop("do"))(**ask)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
