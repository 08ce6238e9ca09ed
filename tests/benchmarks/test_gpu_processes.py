"""The processes that the GPU report starts, and its use of torch.cuda, without a GPU."""

import contextlib
import math
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cost.cases import Case, parts
from benchmarks.gpu import sanitizer, timing
from benchmarks.gpu.chains import build, ours
from benchmarks.gpu.checks import check_values
from benchmarks.gpu.device import CudaDevice, DryRun
from benchmarks.gpu.models import TEXT, build_model, prompt, real_models
from benchmarks.gpu.smoke import run_smoke, small_cases
from benchmarks.gpu.timing import METHOD


# ------------------------------------------------------------------------------------------------------------ sanitizer
def test_sanitizer_runs_a_tool_and_reads_what_it_says(tmp_path: Path) -> None:
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(
        "#!/bin/sh\necho 'begin x'\necho 'ok x'\n"
        'if [ "$2" = racecheck ]; then echo "========= RACECHECK SUMMARY: 1 hazards displayed"; exit 9; fi\n'
        "echo '========= ERROR SUMMARY: 0 errors'\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    records = {r["tool"]: r for r in sanitizer.Sanitizer(True, str(fake)).finish(30)}
    assert {tool: r["status"] for tool, r in records.items()} == {
        "memcheck": "passed", "racecheck": "failed", "initcheck": "passed", "synccheck": "passed",
    }  # fmt: skip
    assert sanitizer.read("memcheck", 0, "ok x\nwrong y: TypeError: z\nERROR SUMMARY: 0 errors")["status"] == "failed"
    assert sanitizer.read("memcheck", 0, "")["status"] == "failed"  # no summary: it watched nothing
    assert "last begun: y" in sanitizer.read("memcheck", None, "begin y\n")["why"]


# ------------------------------------------------------------------------------------- processes that hang or crash
CRASHES = """
import sys, time
for name in ("a", "b", "c", "d"):
    if name in sys.argv: continue
    print("begin", name, flush=True)
    if name == "b": sys.exit(7)
    if name == "c": time.sleep(240)
    print("ok", name, flush=True)
"""


def test_an_item_that_crashes_or_hangs_takes_nobody_with_it() -> None:
    records = run_smoke([sys.executable, "-c", CRASHES], seconds=240, stall=15)
    assert {r["item"]: r["status"] for r in records} == {"a": "passed", "b": "failed", "c": "failed", "d": "passed"}
    why = {r["item"]: r.get("why", "") for r in records}
    assert why["b"].startswith("process ended with 7") and why["c"] == "no word for 15 s"


def test_smoke_ends_with_its_time() -> None:
    records = run_smoke([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.5)
    assert records == [{"item": "the rest", "status": "not measured", "why": "time"}]


def _gone(pid: int) -> bool:
    """Whether a process has ended, within 10 s (a killed orphan may wait a while for init)."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
        except ProcessLookupError:
            return True
        if state.strip().startswith("Z"):
            return True
        time.sleep(0.1)
    return False


def test_what_a_stopped_process_started_is_stopped_too(tmp_path: Path) -> None:
    """A sanitizer's target, a compiler: they would go on while we time."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/$2.pid\nwait\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    watching = sanitizer.Sanitizer(True, str(tool))
    files = [tmp_path / f"{name}.pid" for name in sanitizer.TOOLS]
    end = time.monotonic() + 30
    while time.monotonic() < end and not all(file.exists() and file.read_text().strip() for file in files):
        time.sleep(0.05)
    assert {r["status"] for r in watching.finish(0.2)} == {"not measured"}

    forks = "import subprocess as s; p = s.Popen(['sleep', '300']); print('begin', p.pid, flush=True); p.wait()"
    record = run_smoke([sys.executable, "-c", forks], seconds=30, stall=5, attempts=1)[0]
    assert record["why"] == "no word for 5 s"
    for pid in (*(int(file.read_text()) for file in files), int(record["item"])):
        assert _gone(pid), pid


# ------------------------------------------------------------------------ the GPU's half, on a stand-in for torch.cuda
class _Stand:
    """Whatever of torch.cuda, doing nothing."""

    L2_cache_size, multi_processor_count, total_memory, name, uuid = 1 << 16, 4, 1 << 30, "stand-in", "0"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = time.perf_counter()

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def replay(self) -> None: ...

    def elapsed_time(self, other: "_Stand") -> float:
        return (other.at - self.at) * 1e3


def test_the_device_asks_torch_cuda_for_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name exists in torch.cuda (setattr would refuse), and the pieces fit together."""
    modes: list[Any] = []
    for name in ("Event", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, _Stand)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    for name in ("current_stream", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: _Stand())
    for name in ("synchronize", "empty_cache", "set_stream", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 30, 1 << 30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 7)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    device = CudaDevice()
    device.device = torch.device("cpu")
    assert device.facts()["kind"] == "gpu" and "nvidia-smi" in device.state()
    assert device.peak_bytes() == 7 and device.free_bytes() == 1 << 30
    with device.no_sync():
        assert modes == ["error"]
    assert modes == ["error", 0]
    chain = build(Case("key_norms", {"B": 1, "H": 2, "N": 12, "d": 16}), device.device)
    found = timing.measure(device, lambda *inputs: chain.run(ours, *inputs), chain.inputs, 0.01)
    assert set(found) == set(METHOD) and all(found[mode]["p50"] > 0 for mode in METHOD)
    start = device.mark()
    assert device.between(start, device.mark()) >= 0

    from vitcop_kernels.ops.vic_cluster import kernel

    fits = kernel.fits
    with pytest.raises(NotImplementedError, match="does not fit"), device.one_launch(True):
        assert kernel.fits((1, 1), None, {}) is False  # type: ignore[arg-type]
    with device.one_launch(False):
        assert kernel.fits is not fits
    assert kernel.fits is fits


# --------------------------------------------------------------------------------- what only a GPU runs, as far as here
@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.name)
def test_the_small_matrix_comes_out_right(case: Case) -> None:
    """What runs first on a GPU: its inputs, its truth and its tolerances."""
    check_values(DryRun(), build(case, torch.device("cpu")), ours)


def test_selection_over_tiles_comes_out_right() -> None:
    """As a real case has it: centres by the tile, labels that do not meet, three stages of the whole sequence."""
    sizes = {"M": 1152, "T": 5, "H": 2, "D": 16, "C": 128, "N1": 240, "K": 70, "N2": 100, "N3": 40}
    chain, calls = build(Case("selection", sizes), torch.device("cpu")), []

    def keep(op: str, *args: Any, **kwargs: Any) -> Any:
        calls.append((op, args, kwargs))
        return ours(op, *args, **kwargs)

    check_values(DryRun(), chain, ours)
    hidden, companions = chain.run(keep, *chain.inputs)
    assert hidden.shape == (1, 45, 128) and [t.shape[1] for t in companions] == [45] * 3
    assert [op for op, *_ in calls] == [part.op for part in parts(chain.case) if part.op != "gather"]
    bounds, counts = next((args[2], kw["center_counts"]) for op, args, kw in calls if op == "vic_cluster_varlen")
    labels, limit = next((args[0], args[2]) for op, args, _ in calls if op == "plan_tokens")
    first, second = (set(part.tolist()) for part in labels[0].tensor_split([int(bounds[1])]))
    assert limit == 140 and len(first) == int(counts[0]) and len(second) == int(counts[1])
    assert max(first) < 70 <= min(second) and counts.tolist() == [
        math.ceil(n * 70 / 576) for n in bounds.diff().tolist()
    ]


def test_real_prompts_have_the_tokens_that_are_counted() -> None:
    """At true image size in a narrow model: transformers refuses a prompt with another number of placeholders."""
    narrow = dict(width=64, inner=96, layers=1, heads=2, vision_width=32, vision_layers=3)
    for spec in real_models():
        model = build_model(replace(spec, **narrow), torch.device("cpu"))
        with torch.no_grad():
            out = model(**prompt(spec, 1, torch.device("cpu")), use_cache=True, logits_to_keep=1)
        assert out.past_key_values.get_seq_length() == spec.visual + TEXT, spec.name
