"""Measure and keep: see the package."""

import argparse
import sys

import torch

from benchmarks.evidence import record

from . import __doc__ as ABOUT
from . import sweeps
from .document import FIGURE, draw, section, slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=16384, help="tokens")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the rounds of a point, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="up to 256 tokens, to see that it runs; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    largest, seconds = (256, 0.0) if options.quick else (options.largest, options.seconds)
    if largest < 256:
        parser.error(f"--largest: expected at least 256, got {largest}")

    def tell(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    found = {
        "sweeps": sweeps.times(largest, seconds, tell),
        "threads": sweeps.threads(seconds, (min(576, largest), min(2304, largest)), tell),
        "memory": sweeps.memory(largest, tell),
    }
    for what, op, way, fit in slopes(found):
        print(
            f"{what}: {op}, {way}: slope {fit.slope:.2f} +- {fit.error:.2f}, fitted from {fit.first:g} to {fit.last:g}"
        )
    if options.quick:
        about = {"command": "", "commit": "", "date": "", "machine": record.machine()}
        print(section(about | found))
        return
    print(record.keep("scale", "python -m benchmarks.evidence.scale", found))
    draw(found)
    print(FIGURE)


if __name__ == "__main__":
    main()
