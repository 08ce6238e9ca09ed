"""The cost model counts launches as the launchers make them, and its estimates behave."""

import importlib
import itertools
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cost import document
from benchmarks.cost.cases import Case, centers_of, parts, real_cases, tiny_cases
from benchmarks.cost.estimate import estimate
from benchmarks.cost.gpus import GPUS, gpu_named
from benchmarks.cost.work import OPS, Chip, one_launch, work_of
from benchmarks.gpu.chains import build

NO_KERNEL = {  # ops of torch that only make or look at a tensor
    "empty", "empty_like", "empty_strided", "new_empty", "view", "as_strided", "split", "split_with_sizes", "select",
    "slice", "transpose", "t", "unsqueeze", "squeeze", "expand", "permute", "detach", "alias", "unbind",
    "_reshape_alias",
}  # fmt: skip
CHIP = Chip(GPUS["H200"].sms)
UNDER_TEST = [case for case in (*real_cases(), *tiny_cases()) if case.op in OPS]


class TorchKernels(TorchDispatchMode):
    """Counts the kernels that torch itself would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ not in NO_KERNEL:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter would run")
@pytest.mark.parametrize("case", UNDER_TEST, ids=lambda case: case.name)
def test_launches_are_those_of_the_launcher(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are counted and not run: how many there are must not depend on values."""
    from triton.runtime.interpreter import GridExecutor

    chain = build(case, torch.device("cpu"))
    launched: list[str] = []
    programs: list[int] = []

    def record(self: Any, *args: Any, **kwargs: Any) -> None:
        launched.append(self.fn.__name__)
        programs.append(math.prod(self.grid))

    monkeypatch.setattr(GridExecutor, "__call__", record)
    clusterer = importlib.import_module("vitcop_kernels.ops.vic_cluster.kernel")
    fits = case.op.startswith("vic_cluster") and one_launch(case, CHIP)
    monkeypatch.setattr(clusterer, "fits", lambda *_: fits)
    gemm = importlib.import_module("vitcop_kernels.ops.key_proj.gemm")
    monkeypatch.setattr(gemm, "_device_facts", lambda *_: (232448, False))  # an H200's tiles

    def launcher(op: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"vitcop_kernels.ops.{op}.kernel"), op)(*args, **kwargs)

    with TorchKernels() as torchs:
        chain.run(launcher, *chain.inputs)
    assert len(launched) >= 1
    work = work_of(case, CHIP)
    assert work.launches == len(launched) + len(torchs.found), (launched, torchs.found, [s.name for s in work.steps])
    steps = [step.programs for step in work.steps if not step.barrier and step.name != "zero the counters"]  # torch's
    assert steps == programs, (launched, [s.name for s in work.steps])


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_no_estimate_is_under_its_floor(gpu: Any) -> None:
    for case in (*real_cases(), *tiny_cases()):
        found = estimate(case, gpu)
        assert 0 < found.floor_us <= found.us, (gpu.name, case.name)
        assert found.us == pytest.approx(sum(found.terms.values()))
        assert found.binds in found.terms


def test_steps_move_and_compute_at_least_what_cannot_be_avoided() -> None:
    for case in UNDER_TEST:
        work = work_of(case, CHIP)
        assert sum(step.bytes for step in work.steps) >= work.bytes * (1 - 1e-9), case.name
        for unit, count in work.flops.items():
            done = sum(step.flops.get(unit, 0.0) for step in work.steps)
            assert done >= count * (1 - 1e-9), (case.name, unit)


SWEEPS = {
    "vic_cluster": lambda n: {"B": 1, "N": n, "D": 1024, "K": centers_of(n)},
    "attention_saliency": lambda n: {"B": 1, "H": 16, "N": n, "d": 64},
    "select_tokens": lambda n: {"B": 1, "N": n, "K": n // 4},
    "key_norms": lambda n: {"B": 1, "H": 32, "N": n, "d": 128},
    "plan_tokens": lambda n: {"B": 1, "N": n, "K": n // 8, "S": n // 2},
    "segment_mean": lambda n: {"B": 1, "N": n, "C": 4096, "S": n // 2},
    "key_proj": lambda n: {"B": 1, "N": n, "C": 4096, "J": 4096, "H": 32},
}


@pytest.mark.parametrize("op", SWEEPS)
@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_more_tokens_never_cost_less(op: str, gpu: Any) -> None:
    """At the sizes of models; in between, a larger tile may be the better one. 1 %: more programs fill more of a device
    that was nearly empty."""
    cases = [Case(op, SWEEPS[op](n)) for n in (144, 288, 864, 2304, 4608)]
    found = [estimate(case, gpu) for case in cases]
    for what in ("us", "floor_us"):
        values = [getattr(f, what) for f in found]
        assert all(b >= 0.99 * a for a, b in itertools.pairwise(values)), (what, values)
        assert values[-1] >= values[0]
    assert found[-1].work.bytes > found[0].work.bytes


def test_every_op_is_estimated_and_measured() -> None:
    import vitcop_kernels

    known = {name for name in vitcop_kernels.ops.__all__ if hasattr(torch.ops.vitcop_reference, name)}
    assert known == set(OPS) - {"gather"}
    for cases in (real_cases(), tiny_cases()):
        assert known <= {case.op for case in cases}


def test_a_stage_is_the_sum_of_its_ops() -> None:
    for case in real_cases():
        works = [work_of(part, CHIP) for part in parts(case)]
        assert work_of(case, CHIP).launches == sum(work.launches for work in works)
        assert work_of(case, CHIP).bytes == sum(work.bytes for work in works)


def test_devices_are_known_by_what_they_call_themselves() -> None:
    for name, key in (
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ):
        assert gpu_named(name) is GPUS[key]
    for name in (
        "NVIDIA T4", "NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA H200 NVL", "NVIDIA H200 MIG 1g.18gb",
        "NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
    ):  # fmt: skip
        assert gpu_named(name) is None, name


def test_the_page_says_what_the_model_says() -> None:
    assert document.PATH.read_text() == document.document(), "run `python -m benchmarks.cost --write`"


def test_every_table_is_called_an_estimate() -> None:
    headings = [
        line for line in document.document().splitlines() if line.startswith(("# ", "## ")) and "rest" not in line
    ]
    assert len(headings) == 3 and all("estimates" in heading for heading in headings)
