"""libFuzzer on the op boundary: `python -m benchmarks.evidence.boundary [--minutes 20]`.

Bytes become calls with malformed shapes, dtypes, strides and indices (tests/native/malformed.py), the C++ kernels run
under AddressSanitizer and UBSan, and each outcome is judged (tests/native/verdict.py): an answer like the fake's with
indices in range and inputs untouched, equal to the reference where that is exact, or the documented error.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import native_build, record

COMMAND = "python -m benchmarks.evidence.boundary"
CORPUS = native_build.NATIVE_TESTS / "corpus.txt"
MAX_BYTES = 96  # of one input


def seeds(folder: Path) -> None:
    """The committed corpus as files, one input each."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for k, line in enumerate(CORPUS.read_text().split() if CORPUS.exists() else []):
        (folder / f"seed-{k}").write_bytes(bytes.fromhex(line))


def fuzz(build: Path, work: Path, *arguments: str) -> str:
    """One run of libFuzzer; its log, which grows in work/log.txt."""
    env = native_build.environment("address", build, work / "report", native_build.libfuzzer(build))
    # The first report ends the run, and libFuzzer keeps its input.
    env |= {name: env[name].replace("halt_on_error=0", "halt_on_error=1") for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}
    env |= {name: re.sub("log_path=[^:]*:", "", env[name]) for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}
    target = native_build.NATIVE_TESTS / "fuzz_boundary.py"
    command = [sys.executable, target, f"-max_len={MAX_BYTES}", "-len_control=0", "-timeout=60", "-rss_limit_mb=6000"]
    with (work / "log.txt").open("w") as log:
        subprocess.run(
            [*command, f"-artifact_prefix={work}/", *arguments],
            env=env | {"OMP_NUM_THREADS": "1"}, stderr=log, check=False,
        )  # fmt: skip
    return (work / "log.txt").read_text(errors="replace")


def last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def run(
    minutes: Annotated[float, typer.Option(help="How long to fuzz, of one core.")] = 20,
) -> None:
    build = native_build.build("address")
    work = build / "boundary"
    seeds(work / "corpus")
    log = fuzz(build, work, f"-max_total_time={int(60 * minutes)}", "-print_final_stats=1", str(work / "corpus"))
    outcomes = re.findall(r"^outcomes: (\{.*\})$", log, re.MULTILINE)
    crashed = not outcomes
    if crashed:
        print(log[-6000:], file=sys.stderr)
    found: dict[str, Any] = {
        "compiler": native_build.version(),
        "sanitizers": native_build.FLAGS["address"],
        "executions": last(r"stat::number_of_executed_units: (\d+)", log),
        "seconds": None if crashed else last(r"in (\d+) second", log),  # it stops at a violation
        "edges": last(r"cov: (\d+)", log),
        "counters": last(r"Loaded \d+ modules\s+\((\d+) inline 8-bit counters\)", log),
        "corpus": sum(1 for _ in (work / "corpus").iterdir()),
        "outcomes": json.loads(outcomes[0]) if outcomes else {},
        "violations": int(crashed),
    }
    record.keep("boundary", f"{COMMAND} --minutes {minutes:g}", found)
    if crashed:
        raise SystemExit(f"a violation; the input is in {work}")


def section(found: dict[str, Any]) -> str:
    answers, spent = found["outcomes"], f"{found['seconds']:,}" if found["outcomes"] else "up to a violation"
    shares = ", ".join(f"{answers.get(kind, 0):,} {kind}" for kind in ("answer", "refused", "no memory"))
    shares = shares if answers else "not counted"
    return f"""## The op boundary under a fuzzer

libFuzzer makes calls of all ops: malformed shapes (up to 2^63 - 1), dtypes, strides, offsets, indices and numbers. The
C++ kernels run under AddressSanitizer and UBSan, and each outcome is judged: the documented error, in the words of the
fake, or an answer shaped like the fake's, with indices in range and inputs untouched (select_tokens, plan_tokens and
expand_plan: equal to the reference). `tests/native` replays the corpus.

| executions | seconds | edges of the C++ code reached | corpus | outcomes | violations |
|---|---|---|---|---|---|
| {found["executions"]:,} | {spent} | {found["edges"]:,} of {found["counters"]:,} | {found["corpus"]:,} \
| {shares} | {found["violations"]} |

{record.origin(found)}
"""


if __name__ == "__main__":
    typer.run(run)
