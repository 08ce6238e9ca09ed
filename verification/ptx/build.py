"""Builds the emulator: `python -m verification.ptx.build` prints the path of the library.

It lies in $PTX_EMULATOR_CACHE (default ~/.cache/ptx-emulator) under a name made from its sources: a change is a new
file, and nothing stale is ever loaded.
"""

import hashlib
import os
import platform
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "emulator"
CACHE = Path(os.environ.get("PTX_EMULATOR_CACHE", Path.home() / ".cache" / "ptx-emulator"))
# -ffp-contract=off: a product and a sum in PTX are two roundings; fma is written out.
FLAGS = [
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
]


def flags() -> list[str]:
    extra = ["-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    return [*FLAGS, *extra, *(["-march=haswell"] if platform.machine() in ("x86_64", "AMD64") else [])]


def library() -> Path:
    """Path of the shared library, built if it is not there."""
    files = sorted(SOURCES.iterdir())
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files) + " ".join(flags()).encode()).hexdigest()
    path = CACHE / f"emulator-{digest[:16]}.so"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, *flags(), "-o", str(new), str(SOURCES / "emulator.cpp")], check=True)
        new.rename(path)
    return path


if __name__ == "__main__":
    print(library())
