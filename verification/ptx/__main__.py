"""Tests on compiled code for several architectures, seeds and modes; one JSON file says what came of them.

python -m verification.ptx --arch 80 90 120 --seeds 1 2 --modes plain hardware lanes --out FILE tests/kernels
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import triton

from . import build
from .driver import MODES, SHARED


def run(paths: list[str], arch: int, seed: int, mode: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        chosen = [f"--ptx-arch={arch}", f"--ptx-seed={seed}", f"--ptx-mode={mode}", f"--ptx-json={found}"]
        command = [sys.executable, "-m", "pytest", "-p", f"{__package__}.plugin", "-q", "--tb=short", *chosen, *paths]
        start = time.monotonic()
        code = subprocess.run(command, check=False).returncode
        if not found.exists():
            raise SystemExit(f"pytest ended with {code} before it ran a test: {' '.join(command)}")
        row = {"arch": f"sm_{arch}", "seed": seed, "mode": mode, **json.loads(found.read_text())}
        return {**row, "seconds": round(time.monotonic() - start)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m verification.ptx", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[90], choices=sorted(SHARED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["plain"])
    parser.add_argument("--out", type=Path, help="results as JSON; written after every run")
    parser.add_argument("paths", nargs="+", help="tests")
    options = parser.parse_args()
    build.library()
    about = {"device": "PTX emulator; no GPU", "triton": triton.__version__, "torch": torch.__version__}
    rows = []
    for arch in options.arch:
        for mode in options.modes:
            for seed in options.seeds:
                rows.append(run(options.paths, arch, seed, mode))
                if options.out:
                    options.out.write_text(json.dumps({"about": about, "runs": rows}, indent=2) + "\n")
    for row in rows:
        print(
            "{arch} seed {seed} {mode}: {passed} passed, {seconds} s".format(**row), *row["failed"], sep="\n  failed: "
        )
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
