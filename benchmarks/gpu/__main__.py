"""Command line of the GPU report: see benchmarks/gpu/__init__.py."""

import argparse
import sys
from pathlib import Path

from vitcop_kernels.bench.device import pick

from . import __doc__ as description
from .report import PARTS, plan_for, run


def main() -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy sizes; measures nothing")
    parser.add_argument("--quick", action="store_true", help="two minutes, one model")
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/<gpu>")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (may be given again)")
    parser.add_argument("--limit", type=float, help="seconds")
    parser.add_argument("--models", help="only models whose name contains this")
    options = parser.parse_args()
    plan = plan_for(options.dry_run, options.quick)
    if options.limit:
        plan.limit = options.limit
    if options.models:
        plan.models = [spec for spec in plan.models if options.models in spec.name]
    if options.only:
        plan.parts = tuple(part for part in PARTS if part in (*options.only, "ops"))  # nothing unchecked is timed
    sys.exit(1 if run(plan, pick(options.dry_run), options.out).failed else 0)


if __name__ == "__main__":
    main()
