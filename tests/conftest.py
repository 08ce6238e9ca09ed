"""Seeds, threads, and a header that says what is being tested."""

import importlib.metadata
import os
import zlib

import pytest
import torch

if not torch.cuda.is_available():  # tests/kernels: Triton must be told before anything imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")

from support import NATIVE_OPS, OPS, native_isa

import vitcop_kernels


def pytest_report_header() -> list[str]:
    if not NATIVE_OPS:
        native = f"NOT ACTIVE, testing the reference alone ({vitcop_kernels.native_error or 'no kernel registered'})"
    else:
        missing = sorted(set(OPS) - NATIVE_OPS)
        native = f"isa {native_isa()}; " + (f"WITHOUT {', '.join(missing)}" if missing else "every op")
    versions = []
    for name in ("torch", "transformers", "numpy"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return [f"vitcop native kernels: {native}", ", ".join(versions)]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "family(name): the model family that a test is about")
    config.addinivalue_line(
        "markers", "feature(name, status='tested', note=''): a row of the README's table of features"
    )
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(2, (os.cpu_count() or 1) // workers)))
    if os.environ.get("VITCOP_REQUIRE_NATIVE") == "1" and set(OPS) != NATIVE_OPS:
        missing = ", ".join(sorted(set(OPS) - NATIVE_OPS))
        raise pytest.UsageError(
            f"VITCOP_REQUIRE_NATIVE=1, but there is no native kernel of {missing} ({vitcop_kernels.native_error})"
        )


def _seed(request: pytest.FixtureRequest) -> int:
    return zlib.crc32(request.node.nodeid.encode())


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Every test draws the same numbers on every run, alone or among others."""
    torch.manual_seed(_seed(request))


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(request))
