"""Print the estimates for one GPU, or write docs/cost.md from those of all.

python -m benchmarks.cost [--gpu H200] [--write | --check]
"""

import argparse

from .document import PATH, document, table
from .gpus import GPUS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H200", choices=list(GPUS))
    parser.add_argument("--write", action="store_true", help=f"write {PATH.name}")
    parser.add_argument("--check", action="store_true", help=f"fail if {PATH.name} says something else")
    options = parser.parse_args()
    if options.write:
        PATH.write_text(document())
    elif options.check:
        if not PATH.exists() or PATH.read_text() != document():
            raise SystemExit(f"{PATH}: differs from the model; run `python -m benchmarks.cost --write`")
    else:
        print(f"{options.gpu}: estimates on paper, no measurements")
        print(table(GPUS[options.gpu]))


if __name__ == "__main__":
    main()
