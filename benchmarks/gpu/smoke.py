"""Every op once at small sizes, in a process of its own: a kernel that hangs or crashes takes nobody with it.

python -m benchmarks.gpu.smoke [--dry-run] [--skip ITEM ...]

Prints `begin ITEM` and `ok ITEM`, or `wrong ITEM: why`. compute-sanitizer runs the same. With --real the cases are
those that will be measured: several processes launch them beforehand, only so that their kernels are compiled.
"""

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cost.cases import Case, real_cases, tiny_cases

ROOT = Path(__file__).parent.parent.parent
TOGETHER = "one launch"


def small_cases() -> list[Case]:
    """Several tiles of everything, ends that fit no tile, both dtypes."""
    cases = []
    for dtype in ("float32", "bfloat16"):
        cases += [
            Case("vic_cluster", {"B": 2, "N": 70, "D": 64, "K": 9}, dtype),
            Case("vic_cluster_varlen", {"B": 3, "T": 100, "L": 60, "D": 64, "K": 5}, dtype),
            Case("attention_saliency", {"B": 2, "H": 3, "N": 77, "d": 48}, dtype),
            Case("key_norms", {"B": 2, "H": 3, "N": 21, "d": 80}, dtype),
            Case("key_proj_norms", {"B": 2, "N": 70, "C": 96, "J": 144, "H": 3}, dtype),
            Case("key_proj", {"B": 2, "N": 70, "C": 96, "J": 144, "H": 3}, dtype),
            Case("segment_mean", {"B": 2, "N": 70, "C": 136, "S": 30}, dtype),
            Case("segment_mean_backward", {"B": 2, "N": 70, "C": 136, "S": 30}, dtype),
            Case("compact_sequence", {"B": 2, "n": 90, "V": 70, "S": 30, "C": 136, "d": 24}, dtype),
        ]
    return [
        *cases,
        Case("select_tokens", {"B": 2, "N": 300, "K": 70}, "float32"),
        Case("expand_plan", {"B": 2, "n": 170, "V": 150, "S": 40}, "float32"),
        Case("plan_tokens", {"B": 2, "N": 150, "K": 12, "S": 40}, "float32"),
    ]


def items(dry_run: bool, real: bool = False) -> Iterator[tuple[str, Case, bool | None]]:
    """(name, case, whether vic_cluster is to go in one launch)."""
    for case in tiny_cases() if dry_run else real_cases() if real else small_cases():
        if case.op.startswith("vic_cluster"):
            yield f"{case.name}, phases", case, False
            yield f"{case.name}, {TOGETHER}", case, True
        else:
            yield case.name, case, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--no-values", action="store_true", help="only launch: under a sanitizer")
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--real", action="store_true", help="the cases of the report")
    parser.add_argument("--phases-only", action="store_true", help="without the cooperative launch of vic_cluster")
    parser.add_argument("--slice", default="0/1", help="k/n: every n-th item, from the k-th")
    options = parser.parse_args()

    from .chains import build, ours
    from .checks import check_values
    from .device import CudaDevice, DryRun

    device: Any = DryRun() if options.dry_run else CudaDevice()
    first, step = map(int, options.slice.split("/"))
    for name, case, together in list(items(options.dry_run, options.real))[first::step]:
        if name in options.skip or (together and options.phases_only):
            continue
        print(f"begin {name}", flush=True)
        try:
            chain = build(case, device.device)
            with device.one_launch(bool(together)):
                if options.no_values:
                    chain.run(ours, *chain.inputs)
                else:
                    check_values(device, chain, ours)
            device.synchronize()
        except Exception as error:
            if "CUDA error" in str(error):  # nothing works in this process any more
                raise
            print(f"wrong {name}: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
        else:
            print(f"ok {name}", flush=True)


def command(*more: str, dry_run: bool, one_launch: bool = True) -> list[str]:
    options = ["--dry-run"] * dry_run + ["--phases-only"] * (not one_launch)
    return [sys.executable, "-m", "benchmarks.gpu.smoke", *options, *more]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}


_RUNNING: set[subprocess.Popen[Any]] = set()


def start(line: list[str], **options: Any) -> subprocess.Popen[Any]:
    """A process in a session of its own: what it starts (a sanitizer's target, compilers) goes with it."""
    options = {"cwd": ROOT, "env": environment()} | options
    process = subprocess.Popen(line, start_new_session=True, **options)
    _RUNNING.add(process)
    return process


def stop(process: subprocess.Popen[Any]) -> None:
    """Kill what is left of it and of all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone, or only zombies left (macOS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _RUNNING.discard(process)


def stop_all() -> None:
    for process in tuple(_RUNNING):
        stop(process)


@contextlib.contextmanager
def compiling(line: list[str], processes: int, until: Callable[[], float]) -> Iterator[None]:
    """Meanwhile, the kernels of the real cases are compiled into Triton's cache by processes of their own.

    They are given until `until()` seconds are left, and are gone afterwards: nothing else runs while we time.
    """
    running = []
    try:
        for k in range(processes):
            running.append(
                start(
                    [*line, "--no-values", "--real", "--slice", f"{k}/{processes}"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        yield
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until()))
    finally:
        for process in running:
            stop(process)


def run_smoke(line: list[str], seconds: float, stall: float = 60.0, attempts: int = 4) -> list[dict[str, str]]:
    """Records of all items; after a crash, or `stall` seconds without a word, the rest is tried in another process."""
    records: list[dict[str, str]] = []
    skip: list[str] = []
    end = time.monotonic() + seconds
    for _ in range(attempts):
        more = [word for name in skip for word in ("--skip", name)]
        lines, died = _listen([*line, *more], end, stall)
        begun = [text[6:] for text in lines if text.startswith("begin ")]
        for text in lines:
            if text.startswith("ok "):
                records.append({"item": text[3:], "status": "passed"})
                skip.append(text[3:])
            elif text.startswith("wrong "):
                name, _, why = text[6:].partition(": ")
                missing = why.startswith("NotImplementedError")
                records.append({"item": name, "status": "skipped" if missing else "failed", "why": why})
                skip.append(name)
        if not died:
            return records
        if died == "time":
            break
        culprit = begun[-1] if begun and begun[-1] not in skip else "start of the process"
        records.append({"item": culprit, "status": "failed", "why": died})
        skip.append(culprit)
        if culprit == "start of the process":
            return records
    records.append({"item": "the rest", "status": "not measured", "why": "time"})
    return records


def _listen(line: list[str], end: float, stall: float) -> tuple[list[str], str]:
    """(what a process printed, how it died or "")."""
    process = start(line, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    heard: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for text in process.stdout or ():
            heard.put(text.rstrip("\n"))
        heard.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    lines: list[str] = []
    try:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return lines, "time"
            try:
                text = heard.get(timeout=min(stall, left))
            except queue.Empty:
                if end - time.monotonic() <= 0:
                    return lines, "time"
                return lines, f"no word for {stall:g} s"
            if text is None:
                break
            lines.append(text)
        code = process.wait()
        return lines, "" if code == 0 else f"process ended with {code}: " + " ".join(lines[-12:])[-1500:]
    finally:
        stop(process)


if __name__ == "__main__":
    main()
