"""The committed results, one file per version of Triton: what they hold, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import triton

from vitcop_kernels._aot import AotSpec

from .compiling import TARGETS, Row, failures, targets_of
from .specs import digest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "verification" / "results" / "aot"
VERSIONS = ("3.6", "3.9")  # the oldest that we support, and the newest

Entry = dict[str, Any]  # digest: str, rows: list of a Row's values by target
Specs = dict[str, list[AotSpec]]


def version() -> str:
    return ".".join(triton.__version__.split(".")[:2])


def path_of(version: str) -> Path:
    return FOLDER / f"triton-{version}.json"


def read(version: str) -> dict[str, Any]:
    path = path_of(version)
    return json.loads(path.read_text()) if path.exists() else {"entries": {}}


def write(version: str, about: dict[str, Any], entries: dict[str, Entry]) -> None:
    """One line a configuration, so that a difference between two commits can be read."""
    head = {"about": about, "columns": Row._fields}
    lines = [f"    {json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries)]
    text = json.dumps(head, indent=2)[:-2] + ',\n  "entries": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    FOLDER.mkdir(parents=True, exist_ok=True)
    path_of(version).write_text(text)


def rows_of(entry: Entry) -> dict[str, Row]:
    return {target: Row(*values) for target, values in entry["rows"].items()}


def stale(spec: AotSpec, entries: dict[str, Entry]) -> list[str]:
    """Targets of which the row is missing or was compiled from something else."""
    entry = entries.get(spec.name, {"digest": None, "rows": {}})
    current = entry["digest"] == digest(spec)
    return [target.name for target in targets_of(spec) if not current or target.name not in entry["rows"]]


def problems(specs: Specs, entries: dict[str, Entry]) -> list[str]:
    """Missing and stale rows, rows of nothing, spills, shared memory over the limit, claims not met."""
    found = []
    every = {spec.name: spec for of_op in specs.values() for spec in of_op}
    for name, spec in every.items():
        old = stale(spec, entries)
        if old:
            found.append(f"{name}: missing or stale on {', '.join(old)}")
            continue
        rows = rows_of(entries[name])
        unknown = sorted(set(rows) - {target.name for target in targets_of(spec)})
        if unknown:
            found.append(f"{name}: dispatch cannot choose it on {', '.join(unknown)}")
        for target in targets_of(spec):
            found += failures(spec, target, rows[target.name])
    found += [f"{name}: no such configuration" for name in entries if name not in every]
    return found


__all__ = [
    "FOLDER",
    "ROOT",
    "TARGETS",
    "VERSIONS",
    "Entry",
    "Specs",
    "path_of",
    "problems",
    "read",
    "rows_of",
    "stale",
    "version",
    "write",
]
