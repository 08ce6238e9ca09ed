"""Every instruction set gives right answers, also the ones this machine would not choose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import NATIVE_OPS, OPS

import vitcop_kernels

PROBE = Path(__file__).parent.parent / "isa_probe.py"


def flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


NEEDS = {
    "portable": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512_bf16": ("avx512_bf16",),
}


@pytest.mark.parametrize("isa", NEEDS)
def test_the_probe_passes_with(isa: str) -> None:
    if not NATIVE_OPS:
        pytest.skip(f"no native kernels: {vitcop_kernels.native_error}")
    if isa not in vitcop_kernels._C.build_info()["isa_compiled"]:
        pytest.skip(f"{isa} was not compiled")
    if not all(flag in flags() for flag in NEEDS[isa]):
        pytest.skip(f"this processor has no {isa}")
    run = subprocess.run(
        [sys.executable, str(PROBE)],
        env=os.environ | {"VITCOP_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == [isa, str(len(OPS))]
