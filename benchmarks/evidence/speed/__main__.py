"""Measure and keep: see the package."""

import argparse
import sys

import torch

from benchmarks.evidence import record

from . import __doc__ as ABOUT
from .document import FIGURE, draw
from .rows import REAL, measured, tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one op; nothing is kept")
    parser.add_argument("--seconds", type=float, default=4.0, help="for the rounds of a row, about, without slow ways")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = tiny() if options.quick else [shape for shape in REAL if options.only in (None, shape[0])]
    if not shapes:
        parser.error(f"--only: expected one of {', '.join(sorted({s[0] for s in REAL}))}, got {options.only!r}")
    from rich.console import Console

    from vitcop.bench import table

    console = Console(width=None if sys.stdout.isatty() else 140)
    found = measured(
        shapes, compiled=options.compile, seconds=options.seconds, device=torch.device(options.device),
        quick=options.quick, tell=lambda what: print(what, file=sys.stderr, flush=True),
        done=lambda row: console.print(table(row)),
    )  # fmt: skip
    if not options.quick and options.only is None:
        print(record.keep("speed", "python -m benchmarks.evidence.speed", found))
        draw(found)
        print(FIGURE)
    if any("refused" in row for row in found["rows"]):
        raise SystemExit("a wrong answer was refused, see above")


if __name__ == "__main__":
    main()
