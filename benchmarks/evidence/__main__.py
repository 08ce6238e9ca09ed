"""Write docs/evidence.md from benchmarks/results/evidence: `python -m benchmarks.evidence [--check]`."""

import importlib
import sys
from pathlib import Path

from .record import load, path_of

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
TOPICS = [
    "fuzz", "determinism", "boundary", "sanitizers", "mutants", "faults", "matrix", "speed", "scale", "crossover",
]  # fmt: skip
HEAD = """# Evidence

Everything here is made by commands from committed result files; each part names its command, and
`python -m benchmarks.evidence` writes the page again.
"""


def part(topic: str) -> str:
    module = importlib.import_module(f"benchmarks.evidence.{topic}")
    if path_of(topic).exists():
        text: str = module.section(load(topic))
        return text
    return f"## {topic.capitalize()}\n\nNot yet run at full size: `python -m benchmarks.evidence.{topic}`.\n"


def page() -> str:
    return "\n".join([HEAD, *map(part, TOPICS)])


def main() -> None:
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            raise SystemExit("docs/evidence.md is not what the results say; run python -m benchmarks.evidence")
        return
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
