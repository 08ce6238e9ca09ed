"""libFuzzer on the op boundary: `python -m verification.boundary [--minutes 20]`.

Bytes become calls with malformed shapes, dtypes, strides and indices (`vitcop_kernels.testing.boundary`), the C++
kernels run under AddressSanitizer and UBSan, and each outcome is judged (`vitcop_kernels.testing.contract`): an answer
like the fake's with indices in range and inputs untouched, equal to the reference where that is exact, or the
documented error.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitcop_kernels.testing.table import TABLE

from . import native_build, record

COMMAND = "python -m verification.boundary"
CORPUS = native_build.ROOT / "tests" / "native" / "corpus.txt"
MAX_BYTES = 96  # of one input


def seeds(folder: Path) -> None:
    """The committed corpus as files, one input each."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for k, line in enumerate(CORPUS.read_text().splitlines()):
        op, data = line.split()
        (folder / f"seed-{k}").write_bytes(bytes([tuple(TABLE).index(op)]) + bytes.fromhex(data))


def fuzz(build: Path, work: Path, *arguments: str) -> str:
    """One run of libFuzzer; its log, which grows in work/log.txt."""
    env = native_build.environment("address", build, work / "report", native_build.libfuzzer(build))
    # The first report ends the run, and libFuzzer keeps its input.
    env |= {name: env[name].replace("halt_on_error=0", "halt_on_error=1") for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}
    env |= {name: re.sub("log_path=[^:]*:", "", env[name]) for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}
    target = native_build.NATIVE / "fuzz_boundary.py"
    command = [sys.executable, target, f"-max_len={MAX_BYTES}", "-len_control=0", "-timeout=60", "-rss_limit_mb=6000"]
    with (work / "log.txt").open("w") as log:
        subprocess.run(
            [*command, f"-artifact_prefix={work}/", *arguments],
            env=env | {"OMP_NUM_THREADS": "1"},
            stderr=log,
            check=False,
        )
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


if __name__ == "__main__":
    typer.run(run)
