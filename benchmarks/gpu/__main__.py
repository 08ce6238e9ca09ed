"""Command line of the GPU report: see benchmarks/gpu/__init__.py."""

import argparse
import sys
from pathlib import Path

from . import __doc__ as description
from .report import PARTS, pick_device, plan_for, run


def main() -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy sizes; measures nothing")
    parser.add_argument("--quick", action="store_true", help="two and a half minutes, one model")
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/<gpu>")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (may be given again)")
    parser.add_argument("--limit", type=float, help="seconds")
    parser.add_argument("--models", help="only models whose name contains this")
    parser.add_argument("--phases-only", action="store_true", help="without the cooperative launch of vic_cluster")
    options = parser.parse_args()
    device = pick_device(options.dry_run)
    plan = plan_for(options.dry_run, options.quick)
    plan.one_launch = not options.phases_only
    if options.limit:
        plan.limit = options.limit
    if options.models:
        plan.models = [spec for spec in plan.models if options.models in spec.name]
    if options.only:
        # Nothing is timed that was not checked.
        extra: tuple[str, ...] = ("checks",) if {"ops", "models"} & set(options.only) else ()
        if "compiled" in options.only:
            extra += ("checks", "ops")
        plan.parts = tuple(part for part in PARTS if part in (*options.only, *extra))
    _, report = run(plan, device, options.out)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
