"""The C++ kernels under AddressSanitizer, UBSan and ThreadSanitizer: `python -m verification.sanitizers`.

Builds the native module once per sanitizer (native_build.py), runs the ops' tests and the boundary corpus in it, and
counts reports. That a report would be seen is part of the run: errors are planted (native/planted.cpp), and each
sanitizer must find its own and be silent about the code next to them.
"""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import native_build, record

COMMAND = "python -m verification.sanitizers"
# What each sanitizer is to say about the functions of planted.cpp.
PLANTED = {
    "address": {
        "out_of_bounds_read": "heap-buffer-overflow",
        "signed_overflow": "signed integer overflow",
        "no_error": "",
    },
    "thread": {"data_race": "data race", "no_error": ""},
}
ARGUMENT = {"signed_overflow": 2**62}
# Without tests that trace and compile (no kernel runs in them that does not run elsewhere) or compare times.
TESTS = {
    "address": ["tests/ops", "tests/native"],
    "thread": [
        "tests/ops/test_isa.py",
        "tests/native",
        "tests/ops/test_vic_cluster_batches.py",
        "tests/ops/test_key_proj.py",
        "tests/ops/test_segment_mean_backward.py",
    ],
}
REPORT = re.compile(r"ERROR: AddressSanitizer: [\w-]+|runtime error: .*|WARNING: ThreadSanitizer: [\w ]+")


def reports(log: Path) -> list[str]:
    return [
        line
        for file in sorted(log.parent.glob(f"{log.name}*"))
        for line in REPORT.findall(file.read_text(errors="replace"))
    ]


def fresh(log: Path) -> Path:
    log.parent.mkdir(parents=True, exist_ok=True)
    for file in log.parent.glob(f"{log.name}*"):
        file.unlink()
    return log


def planted(sanitizer: str, build: Path) -> dict[str, bool]:
    """Whether each planted error is reported as what it is, and nothing else is."""
    import torch

    root, library = Path(torch.__file__).parent, build / "libplanted.so"
    source, flags = native_build.NATIVE / "planted.cpp", native_build.flags(sanitizer).split()
    torch_flags = [f"-isystem{root / 'include'}", f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [native_build.compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", *flags, source, "-o", library]
    subprocess.run([*command, *torch_flags], check=True)
    found = {}
    for function, expected in PLANTED[sanitizer].items():
        log = fresh(build / "planted" / function)
        env = native_build.environment(sanitizer, build, log)
        call = (
            f"import ctypes, torch; f = ctypes.CDLL({str(library)!r}).{function}; f.argtypes = [ctypes.c_int64]; "
            f"torch.set_num_threads(2); f({ARGUMENT.get(function, 1000)})"
        )
        ran = subprocess.run([sys.executable, "-c", call], env=env, check=False, capture_output=True)
        said = reports(log)
        found[function] = any(expected in line for line in said) if expected else not said and ran.returncode == 0
    return found


def tested(sanitizer: str, build: Path, tests: list[str]) -> dict[str, Any]:
    log = fresh(build / "reports" / "report")
    env = native_build.environment(sanitizer, build, log) | {"VITCOP_REQUIRE_NATIVE": "1"}
    chosen = ["-k", "not compile and not opcheck and not fullgraph", "-q", "-p", "no:cacheprovider"]
    start = time.monotonic()
    # Loaded before pytest puts the repository, and with it the module of `make build`, in front of the path.
    start_pytest = (
        f"import sys, pytest, vitcop_kernels; assert vitcop_kernels._C.__file__.startswith({str(build)!r}); "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-P", "-c", start_pytest, *chosen, *tests]
    run = subprocess.run(command, env=env, cwd=native_build.ROOT, capture_output=True, text=True, check=False)
    tail = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr[-500:]
    if run.returncode:
        print(run.stdout[-5000:], run.stderr[-3000:], file=sys.stderr)
    passed = re.search(r"(\d+) passed", tail)
    return {
        "tests": int(passed[1]) if passed else 0,
        "failed": run.returncode != 0,
        "seconds": round(time.monotonic() - start),
        "reports": sorted(set(reports(log))),
    }


def run(
    only: Annotated[list[str] | None, typer.Option(help="address, thread")] = None,
    tests: Annotated[list[str] | None, typer.Option(help="Instead of the selection; nothing is recorded.")] = None,
) -> None:
    found = []
    for sanitizer in only or list(native_build.FLAGS):
        build = native_build.build(sanitizer)
        seen = planted(sanitizer, build)
        print(sanitizer, seen, flush=True)
        if not all(seen.values()):
            raise SystemExit(f"{sanitizer}: a planted error is not reported, or the code next to it is")
        result = tested(sanitizer, build, tests or TESTS[sanitizer])
        print(sanitizer, result, flush=True)
        flags = native_build.FLAGS[sanitizer]
        about = {"sanitizer": sanitizer, "flags": flags, "planted": seen, "selection": tests or TESTS[sanitizer]}
        found.append(about | result)
    if not tests and not only:
        record.keep("sanitizers", COMMAND, {"compiler": native_build.version(), "runs": found})
    if any(r["reports"] or r["failed"] for r in found):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(run)
