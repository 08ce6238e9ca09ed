"""Result files: one per topic, each with the command, the commit and the machine that made it."""

import datetime
import json
from pathlib import Path
from typing import Any

from vitcop_kernels.bench.record import commit, machine

FOLDER = Path(__file__).parent / "results"


def keep(topic: str, command: str, found: dict[str, Any]) -> Path:
    """Write the topic's result file: `command` is what a reader types to make it again."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"topic": topic, "command": command, "date": when, "commit": commit(FOLDER.parent), "machine": machine()}
    path = FOLDER / f"{topic}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | found, indent=1) + "\n")
    return path
