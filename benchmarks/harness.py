"""Result files that say where they come from. The measuring itself is `vitcop_kernels.bench`, which is installed."""

import datetime
import json
from pathlib import Path
from typing import Any

from vitcop_kernels.bench import record
from vitcop_kernels.bench.record import machine, processor

__all__ = ["RESULTS", "commit", "machine", "processor", "write_results"]
RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit of the working tree, marked where it is not what ran."""
    return record.commit(Path(__file__).parent)


def write_results(name: str, result: dict[str, Any], device: str = "cpu") -> Path:
    """Write benchmarks/results/<device>/<date>-<commit>-<name>.json and return its path."""
    when = datetime.datetime.now(datetime.UTC)
    path = RESULTS / device / f"{when:%Y-%m-%d}-{commit()}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"benchmark": name, "date": when.isoformat(timespec="seconds"), "commit": commit(), "machine": machine()}
    path.write_text(json.dumps(about | {"versions": record.versions()} | result, indent=1) + "\n")
    return path
