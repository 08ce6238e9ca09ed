"""Measure and keep: see the package."""

import argparse
import sys

import torch

from benchmarks.evidence import record

from . import __doc__ as ABOUT
from .document import FIGURE, draw, section, sentence
from .measure import measured


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 3 if options.quick else options.rounds
    found = measured(rounds, options.quick, lambda what: print(what, file=sys.stderr, flush=True))
    for sweep in found["sweeps"]:
        for phase in ("prefill", "decode"):
            print(sentence(sweep, phase))
    if options.quick:
        about = {"command": "", "commit": "", "date": "", "machine": record.machine()}
        print(section(about | found))
        return
    print(record.keep("crossover", "python -m benchmarks.evidence.crossover", found))
    draw(found)
    print(FIGURE)


if __name__ == "__main__":
    main()
