"""Run the checks, write the result: see the package."""

import argparse
import json
import re
import sys
from typing import Any

from verification import record
from vitcop_kernels.bench.device import pick, versions

from . import __doc__ as description
from . import processes
from .sanitizer import Sanitizer


def main() -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy sizes")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="for the small sizes, and again for the real shapes"
    )
    options = parser.parse_args()
    device = pick(options.dry_run)
    sanitizer = Sanitizer(options.dry_run)
    repeats = ["--repeats", "3"] if options.dry_run else []
    records = processes.run(processes.command(*repeats, dry_run=options.dry_run), options.seconds)
    if not options.dry_run:
        records += processes.run(processes.command("--real", dry_run=False), options.seconds)
    found: dict[str, Any] = {"device": device.facts(), "versions": versions(), "checks": records}
    found["sanitizer"] = sanitizer.finish(options.seconds)
    everything = [*records, *found["sanitizer"]]
    for one in everything:
        if one["status"] != "passed":
            print(f"{one['status']}: {one.get('item') or one.get('tool')}: {one.get('why', '')[:300]}")
    print(json.dumps({status: sum(r["status"] == status for r in everything) for status in ("passed", "failed")}))
    if not options.dry_run:
        slug = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
        print(record.keep(f"gpu-{slug}", "python -m verification.gpu", found))
    sys.exit(any(one["status"] == "failed" for one in everything))


if __name__ == "__main__":
    main()
