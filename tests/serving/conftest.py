"""Engines of vLLM on a CPU. Each start takes seconds, so engines are shared by the tests of a file."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

WITH_VLLM = importlib.util.find_spec("vllm") is not None

if WITH_VLLM:  # before anything imports it: nothing is fetched or reported, and the engine runs in this process
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def pytest_report_header() -> str:
    return "with vLLM" if WITH_VLLM else "no vLLM: the tests of the running plugin are left to `make test-vllm`"


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """start(model, tokens=..., **engine arguments): an engine that lives until the end of the file; tokens None: as it
    comes."""
    from engines import Engine

    engines: list[Engine] = []

    def begin(model: Path, tokens: int | None = None, **options: Any) -> Engine:
        engines.append(Engine(model, tokens, **options))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()
