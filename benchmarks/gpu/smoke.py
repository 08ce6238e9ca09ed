"""Every op once at small sizes, in a process of its own: a kernel that hangs or crashes takes nobody with it.

python -m benchmarks.gpu.smoke [--dry-run] [--skip ITEM ...]

Prints `begin ITEM` and `ok ITEM`, or `wrong ITEM: why`. compute-sanitizer runs the same. With --real the cases are
those that will be measured: several processes launch them beforehand, only so that their kernels are compiled.
"""

import argparse
import contextlib
import os
import subprocess
import sys
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
        ]
    return [
        *cases,
        Case("select_tokens", {"B": 2, "N": 300, "K": 70}, "float32"),
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
    parser.add_argument("--slice", default="0/1", help="k/n: every n-th item, from the k-th")
    options = parser.parse_args()

    from .chains import build, ours
    from .checks import check_values
    from .device import CudaDevice, DryRun

    device: Any = DryRun() if options.dry_run else CudaDevice()
    first, step = map(int, options.slice.split("/"))
    for name, case, together in list(items(options.dry_run, options.real))[first::step]:
        if name in options.skip:
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


def command(*more: str, dry_run: bool) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.smoke", *(["--dry-run"] if dry_run else []), *more]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}


@contextlib.contextmanager
def compiling(dry_run: bool, processes: int, until: Callable[[], float]) -> Iterator[None]:
    """Meanwhile, the kernels of the real cases are compiled into Triton's cache by processes of their own.

    They are given until `until()` seconds are left, and are gone afterwards: nothing else runs while we time.
    """
    running = []
    try:
        for k in range(processes):
            line = command("--no-values", "--real", "--slice", f"{k}/{processes}", dry_run=dry_run)
            running.append(
                subprocess.Popen(
                    line, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
        yield
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until()))
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_smoke(dry_run: bool, seconds: float, attempts: int = 4) -> list[dict[str, str]]:
    """Records of all items; after a crash or a hang the rest is tried in another process."""
    records: list[dict[str, str]] = []
    skip: list[str] = []
    end = time.monotonic() + seconds
    for _ in range(attempts):
        left = end - time.monotonic()
        if left <= 0:
            break
        more = [word for name in skip for word in ("--skip", name)]
        died = ""
        try:
            done = subprocess.run(
                command(*more, dry_run=dry_run), cwd=ROOT, env=environment(), text=True, timeout=left,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            text = done.stdout
            if done.returncode != 0:
                died = f"process ended with {done.returncode}: {text[-1500:]}"
        except subprocess.TimeoutExpired as error:
            out = error.stdout or b""
            text = out.decode(errors="replace") if isinstance(out, bytes) else out
            died = f"did not return within {left:.0f} s"
        lines = text.splitlines()
        begun = [line[6:] for line in lines if line.startswith("begin ")]
        for line in lines:
            if line.startswith("ok "):
                records.append({"item": line[3:], "status": "passed"})
                skip.append(line[3:])
            elif line.startswith("wrong "):
                name, _, why = line[6:].partition(": ")
                missing = why.startswith("NotImplementedError")
                records.append({"item": name, "status": "skipped" if missing else "failed", "why": why})
                skip.append(name)
        if not died:
            return records
        culprit = begun[-1] if begun and begun[-1] not in skip else "start of the process"
        records.append({"item": culprit, "status": "failed", "why": died})
        skip.append(culprit)
        if culprit == "start of the process":
            return records
    records.append({"item": "the rest", "status": "not measured", "why": "time"})
    return records


if __name__ == "__main__":
    main()
