"""Run the checks, write the result: see the package."""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from typing import Any

from verification import record
from vitcop_kernels.bench.device import pick, versions

from . import __doc__ as description
from . import processes
from .sanitizer import Sanitizer

PARTS = ("smoke", "check", "sanitize")  # small sizes, three repeats; 1000 repeats and the real shapes; sanitizers


def warm_up(count: int, dry_run: bool, seconds: float) -> None:
    """Compile the kernels of the real shapes into Triton's cache, several at a time."""
    lines = [
        processes.command("--only-launch", "--real", "--slice", f"{k}/{count}", dry_run=dry_run) for k in range(count)
    ]
    running = [processes.start(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for line in lines]
    end = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        processes.stop(process)


def main() -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy sizes")
    parser.add_argument("--part", choices=PARTS, help="this one alone; its result is a file of its own")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="for the small sizes, and again for the real shapes"
    )
    options = parser.parse_args()
    device, part = pick(options.dry_run), options.part
    check = part in (None, "check")
    if check:
        warm_up(1 if options.dry_run else max(1, min(8, (os.cpu_count() or 2) - 2)), options.dry_run, options.seconds)
    sanitizer = Sanitizer(options.dry_run) if part in (None, "sanitize") else None
    records: list[dict[str, str]] = []
    if part != "sanitize":
        repeats = ["--repeats", "3"] if options.dry_run or part == "smoke" else []
        records += processes.run(processes.command(*repeats, dry_run=options.dry_run), options.seconds)
    if check and not options.dry_run:
        records += processes.run(processes.command("--real", dry_run=False), options.seconds)
    found: dict[str, Any] = {"device": device.facts(), "versions": versions(), "checks": records}
    found["sanitizer"] = sanitizer.finish(options.seconds) if sanitizer else []
    everything = [*records, *found["sanitizer"]]
    for one in everything:
        if one["status"] != "passed":
            print(f"{one['status']}: {one.get('item') or one.get('tool')}: {one.get('why', '')[:300]}")
    print(json.dumps({status: sum(r["status"] == status for r in everything) for status in ("passed", "failed")}))
    if not options.dry_run:
        slug = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
        suffix, more = (f"-{part}", f" --part {part}") if part else ("", "")
        print(record.keep(f"gpu-{slug}{suffix}", f"python -m verification.gpu{more}", found))
    sys.exit(any(one["status"] == "failed" for one in everything))


if __name__ == "__main__":
    main()
