"""In the emulator dispatch sees the device that is emulated, not a CPU."""

import pytest
from launchers import EMULATED, emulator


@pytest.fixture(autouse=True)
def emulated_device(monkeypatch: pytest.MonkeyPatch) -> None:
    if EMULATED:
        from vitcop_kernels.ops.key_proj import gemm

        monkeypatch.setattr(gemm, "_device_facts", lambda device: (emulator().SHARED[emulator().capability()], False))
