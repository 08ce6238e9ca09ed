"""What a result has to say about where it comes from."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import vitcop_kernels

RESULTS = ("benchmarks/results", "studies/results", "verification/results", "docs")  # change nothing of what runs
PACKAGES = ("torch", "numpy", "scipy", "triton", "transformers", "scikit-learn", "pydpc", "flash-kmeans")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit(folder: Path | None = None) -> str:
    """The commit of the working tree that holds `folder` (default: this package), marked where it is not what ran.

    Results and pages that earlier runs wrote leave no mark. "unknown" outside of one: an installed package, say, whose
    version is among `versions`.
    """
    where = str(folder or Path(__file__).parent)
    name = ["git", "-C", where, "rev-parse", "--short=12", "HEAD"]
    code = [":(top)", *(f":(top,exclude){part}" for part in RESULTS)]
    changed = ["git", "-C", where, "status", "--porcelain", "-uno", "--", *code]
    try:
        tracked = ["git", "-C", where, "ls-files", "--error-unmatch", str(Path(where))]
        if folder is None:  # a site-packages inside somebody else's repository
            subprocess.run(tracked, capture_output=True, check=True)
        named, found = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in (name, changed))
        return named.strip() + ("-dirty" if found.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str | None]:
    """None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("vitcop", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found | {"torch": torch.__version__}


def machine() -> dict[str, Any]:
    native = None if vitcop_kernels.native_error else vitcop_kernels._C.build_info()
    return {
        "processor": processor(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": native,
        "native_error": vitcop_kernels.native_error,
    }
