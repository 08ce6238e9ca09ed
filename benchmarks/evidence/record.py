"""Result files of the evidence: one per topic, each with the command, the commit and the machine that made it."""

import datetime
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, commit, machine

FOLDER = RESULTS / "evidence"


def path_of(topic: str) -> Path:
    return FOLDER / f"{topic}.json"


def keep(topic: str, command: str, found: dict[str, Any]) -> Path:
    """Write the topic's result file: `command` is what a reader types to make it again."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"topic": topic, "command": command, "date": when, "commit": commit(), "machine": machine()}
    path = path_of(topic)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | found, indent=1) + "\n")
    return path


def load(topic: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path_of(topic).read_text())
    return found


def origin(found: dict[str, Any]) -> str:
    """The line under a table: what made it, where and when."""
    where = found["machine"]
    return (
        f"Made by `{found['command']}` at {found['commit']} on {found['date'][:10]}: {where['processor']}, "
        f"{where['logical_cpus']} CPUs, {where['threads']} threads, torch {where['torch']}, Python {where['python']}."
    )
