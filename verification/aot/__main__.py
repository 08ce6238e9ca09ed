"""`python -m verification.aot` compiles every configuration that dispatch can choose, for every GPU, without a GPU.

What is as committed is not compiled again (`--all` does). Writes verification/results/aot/triton-<version>.json for the
installed version of Triton and verification/results/aot.md from the results of all versions; exits with 1 if anything
is wrong.
"""

import argparse
import json
import os
import subprocess
import sys
import time

if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    sys.exit("verification.aot: TRITON_INTERPRET is set: expected it unset, the interpreter compiles nothing")

import triton
from triton.backends.nvidia.compiler import get_ptxas

from . import results, table
from .compiling import TARGETS
from .specs import collect, digest
from .workers import compile_all

SAVE_EVERY = 60.0  # seconds, so that little is lost


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m verification.aot", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--op", nargs="+", help="only these ops")
    parser.add_argument("--name", default="", help="only configurations whose name contains this")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--all", action="store_true", help="compile also what has not changed")
    parser.add_argument("--check", action="store_true", help="compile nothing, only say what is wrong")
    options = parser.parse_args()

    specs, version = collect(), results.version()
    every = {spec.name: spec for of_op in specs.values() for spec in of_op}
    entries = results.read(version)["entries"]
    if options.check:
        return report(results.problems(specs, entries) + not_covered())

    digests = {name: digest(spec) for name, spec in every.items()}
    by_digest = {entry["digest"]: entry for entry in entries.values()}  # a new name is no new code
    entries = {name: entries.get(name) or by_digest.get(digests[name]) for name in every}
    entries = {name: {**entry, "rows": dict(entry["rows"])} for name, entry in entries.items() if entry}
    work = {}
    for op, of_op in specs.items():
        for spec in of_op:
            if (options.op and op not in options.op) or options.name not in spec.name:
                continue
            wanted = [t.name for t in results.targets_of(spec)] if options.all else results.stale(spec, entries)
            if wanted := [name for name in wanted if name in options.target]:
                work[spec.name] = wanted
    print(f"Triton {triton.__version__}: {len(work)} of {len(every)} configurations to compile", flush=True)
    saved, cpu = time.monotonic(), 0.0
    for k, (name, rows, seconds) in enumerate(compile_all(work, options.jobs)):
        cpu += seconds
        if isinstance(rows, Exception):
            print(f"{name}: does not compile: {type(rows).__name__}: {rows}", flush=True)
            continue
        entry, current = entries.get(name), digests[name]
        kept = entry["rows"] if entry and entry["digest"] == current else {}
        rows = {target: list(row) for target, row in rows.items()}
        entries[name] = {"digest": current, "rows": {**kept, **rows}}
        print(f"[{k + 1}/{len(work)}] {name}: {seconds:.1f} s", flush=True)
        if time.monotonic() - saved > SAVE_EVERY:
            results.write(version, about(), entries)
            saved = time.monotonic()
    print(f"{cpu / 60:.1f} CPU minutes")
    for name, entry in entries.items():
        known = [target.name for target in results.targets_of(every[name])]
        entry["rows"] = {target: entry["rows"][target] for target in known if target in entry["rows"]}
    results.write(version, about(), entries)
    table.write(specs)
    return report(results.problems(specs, entries) + not_covered())


def not_covered() -> list[str]:
    """Specializations that launchers ask for and no configuration stands for, found in another process."""
    command = [sys.executable, "-m", "verification.aot.dispatch"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [f"{what}: dispatch can choose it, and it is not compiled" for what in found["missing"]]


def about() -> dict[str, str]:
    return {"triton": triton.__version__, **{f"ptxas of sm_{arch}": get_ptxas(arch).version for arch in (80, 90, 100)}}


def report(problems: list[str]) -> int:
    print("\n".join(problems) if problems else "every configuration is in the table and keeps what it claims")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
