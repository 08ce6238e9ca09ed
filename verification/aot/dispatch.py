"""What the launchers ask Triton for, compared with the configurations that are compiled ahead of time.

The launchers run on CPU tensors under the emulator's driver with launches that do nothing; every specialization that
they would compile is recorded. `python -m verification.aot.dispatch` prints, as JSON, those that no configuration
stands for. AMD GPUs are not covered: their dispatch needs a HIP build of torch.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from verification.ptx import driver

if __name__ == "__main__":
    driver.install(90, empty=False)

import torch
from triton.runtime.jit import JITFunction

from vitcop_kernels._aot import AotSpec
from vitcop_kernels.ops.key_proj import gemm
from vitcop_kernels.ops.vic_cluster import kernel as clustering
from vitcop_kernels.ops.vic_cluster import phases
from vitcop_kernels.testing.implementations import implementation
from vitcop_kernels.testing.table import TABLE, build

from .specs import collect

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ARCHITECTURES = (80, 90, 120)


@dataclass(frozen=True)
class Specialization:
    kernel: str
    values: tuple[tuple[str, Any], ...]  # by name: element types of pointers, constants, warps and stages

    def __getitem__(self, name: str) -> Any:
        return dict(self.values).get(name)


def specialization(kernel: Any, signature: dict[str, str], constants: dict[str, Any], options: Any) -> Specialization:
    """float16 counts as bfloat16, which stands for it (docs/aot.md)."""
    types = {name: kind.lstrip("*") for name, kind in signature.items() if kind.startswith("*")}
    values = {name: "bf16" if kind == "fp16" else kind for name, kind in types.items()} | constants | options
    return Specialization(kernel.fn.__name__, tuple(sorted(values.items(), key=lambda item: item[0])))


def of_spec(spec: AotSpec) -> Specialization:
    launch = {"num_warps": spec.num_warps, "num_stages": spec.num_stages}
    return specialization(spec.kernel, spec.signature, spec.constexprs, launch)


# What code depends on, by kernel: groups of values, of each of which every combination that dispatch asks for must be
# compiled in some configuration. What is in no group (widths, padded sizes, strides) changes little: see docs/aot.md.
# A group may be a function of the specialization.
def _saliency(s: Specialization) -> tuple[str, ...]:
    return ("STORE",) if s["STORE"] else ("STORE", "HAS_MASK", "ROWS", "p_query")


def _plan_scores(s: Specialization) -> tuple[str, ...]:
    return ("QUOTA", "FILL", "p_scores") if s["FILL"] else ("QUOTA", "FILL")


def _tiles(s: Specialization) -> tuple[str, ...]:
    tile = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages") if s["EVEN_K"] else ()
    return ("p_x", "KEYS", "EVEN_K", *tile)


def _phase(s: Specialization) -> tuple[str, ...]:
    phase = s["PHASE"]
    tile = phase in (phases.TILE.value, phases.DENSITY.value, phases.PARENT.value)
    return ("PHASE", "p_x", "BM", "STORE") if tile else ("PHASE",)


def _option(name: str, *depends: Any) -> Any:
    """Options are compiled one by one, for the phases whose code has them."""
    values = [phase.value for phase in depends]
    return lambda s: ("PHASE", name) if s["PHASE"] in values else ("PHASE",)


GROUPS: dict[str, tuple[Any, ...]] = {
    "statistics_kernel": (("p_query", "HAS_MASK", "STORE", "ROWS"),),
    "saliency_kernel": (_saliency,),
    "compact_kernel": (("p_x", "ADD_ANCHOR"),),  # four companions stand for fewer
    "expand_kernel": (("HAS_PERM", "HAS_MERGED", "HAS_VALID"), ("num_warps",)),
    "key_norms_kernel": (("p_keys",), ("MEAN",)),
    "projection_kernel": (_tiles, ("p_x", "KEYS", "WIDE", "SQUARES"), ("HAS_BIAS",)),
    "finish_kernel": ((),),
    "rms_norm_kernel": (("p_x",),),
    "count_kernel": (("p_scores",), ("p_labels",), ("RELEASED", "TOTALS")),
    "plan_kernel": (_plan_scores, ("QUOTA", "WHOLE"), ("num_warps",)),
    "segment_mean_kernel": (("p_x", "ADD_ANCHOR"),),
    "locate_kernel": (("ADD_ANCHOR",),),
    "gradient_kernel": (("p_grad", "ADD_ANCHOR"),),
    "select_tokens_kernel": (("p_scores",), ("LARGEST",), ("ONE_BLOCK", "num_warps")),
    "vic_kernel": (
        _phase,
        ("PHASE", "VARLEN"),
        _option("RELEASED", phases.DENSITY, phases.PARENT, phases.RESOLVE),
        _option("COSINE", phases.DENSITY, phases.PARENT, phases.CHOOSE),
        _option("KNN", phases.DENSITY, phases.PARENT),
    ),
    "unit_kernel": (("p_x",),),
    "pairs_kernel": (("p_x",), ("COSINE",)),
    "nearest_kernel": (("p_x",), ("COSINE",)),
    "gamma_kernel": ((),),
}


def parts(s: Specialization) -> Iterator[tuple[Any, ...]]:
    """(kernel, name, value, ...) of each group."""
    for k, group in enumerate(GROUPS[s.kernel]):
        names = group(s) if callable(group) else group
        yield (s.kernel, k, *((name, s[name]) for name in names))


def missing(asked: Iterable[Specialization], compiled: Iterable[Specialization]) -> list[str]:
    """In words, what is asked for and not compiled."""
    known = {part for s in compiled for part in parts(s)}
    found = {}
    for s in asked:
        if s.kernel not in GROUPS:
            found[s.kernel] = f"{s.kernel}: not in verification/aot/dispatch.py"
            continue
        for part in parts(s):
            if part not in known:
                found[part] = f"{s.kernel}: " + ", ".join(f"{name}={value}" for name, value in part[2:])
    return sorted(found.values())


@contextlib.contextmanager
def recording() -> Iterator[list[Specialization]]:
    """Kernels are neither compiled nor launched."""
    found: list[Specialization] = []

    def record(self, key, signature, device, constexprs, options, attrs, warmup):  # type: ignore[no-untyped-def]
        constants = {self.arg_names[at[0]]: value for at, value in constexprs.items()}
        constants = {name: getattr(value, "value", value) for name, value in constants.items()}
        launch = {"num_warps": options.num_warps, "num_stages": options.num_stages}
        found.append(specialization(self, signature, constants, launch))

    compile_, JITFunction._do_compile = JITFunction._do_compile, record
    try:
        yield found
    finally:
        JITFunction._do_compile = compile_


def calls() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every op at the shapes of models, and small calls that reach every branch, in every dtype."""
    for op, row in TABLE.items():
        for shape in row.shapes:
            for dtype in DTYPES:
                case = build(op, shape.dims, str(dtype).removeprefix("torch."))
                yield op, case.args, case.kwargs
        for dtype in DTYPES:
            for args, kwargs in row.samples(dtype):
                yield op, args, kwargs
    for dtype in DTYPES:
        for heads, kv, rows, d in (
            (16, 16, 1, 64),
            (32, 32, 1, 128),
            (32, 8, 1, 128),
            (32, 32, 20, 128),
            (32, 32, 64, 256),
        ):
            query, key = torch.empty(1, heads, rows, d, dtype=dtype), torch.empty(1, kv, 96, d, dtype=dtype)
            for mask in (None, torch.ones(1, rows, 96, dtype=torch.bool)):
                yield "attention_saliency", (query, key, mask), {}
        x, places = torch.randn(1, 400, 64).to(dtype), torch.rand(400, 2)
        for semantics in ("paper", "released"):
            for metric in ("l2", "cosine"):
                yield "vic_cluster", (x, places, 8.0, 0.5, 60), {"semantics": semantics, "metric": metric}
                yield "vic_cluster", (x[:, :70], places[:70], 8.0, 0.5, 9), {"semantics": semantics, "metric": metric}
        yield "vic_cluster", (x, places, 8.0, 0.5, 60), {"density": "knn", "assign": "nearest"}
        scores = torch.randn(300).to(dtype)
        for quota, fill in (("exact", True), ("floor", True), ("floor", False), ("released", True)):
            for clusters, budget in ((20, 70), (90, 40)):
                labels = torch.zeros(300, dtype=torch.int64)
                yield "plan_tokens", (labels, scores, clusters, budget), {"quota": quota, "fill": fill}
        for n in (100, 300, 1000, 9000):
            yield "select_tokens", (torch.randn(n).to(dtype), 7), {}


def asked_for() -> list[Specialization]:
    """By all launchers, on several architectures; vic_cluster in phases and in one launch."""
    given, facts = list(calls()), gemm._device_facts
    with recording() as found:
        for arch in ARCHITECTURES:
            gemm._device_facts = lambda device, arch=arch: (driver.SHARED[arch], False)  # type: ignore[assignment]
            for op, args, kwargs in given:
                if arch != ARCHITECTURES[0] and not op.startswith("key_proj"):
                    continue
                for together in (False, True) if op.startswith("vic") else (False,):
                    fits, clustering.fits = clustering.fits, lambda g, a, c, t=together: t and c["NP"] <= 1024
                    with contextlib.ExitStack() as undo:
                        undo.callback(setattr, clustering, "fits", fits)
                        implementation("triton", op)(*args, **kwargs)
    gemm._device_facts = facts
    return list(dict.fromkeys(found))


def main() -> None:
    compiled = [
        of_spec(spec)
        for of_op in collect().values()
        for spec in of_op
        if "cuda" in spec.backends or any(b.startswith("sm_") for b in spec.backends)
    ]
    asked = asked_for()
    # Self-test: a missing configuration and an unknown kernel must both be reported.
    less = [
        s for s in compiled if not (s.kernel == "statistics_kernel" and s["p_query"] == "bf16" and not s["HAS_MASK"])
    ]
    stranger = Specialization("stranger_kernel", ())
    found = {
        "asked": len(asked),
        "missing": missing(asked, compiled),
        "planted": missing(asked, less),
        "stranger": missing([stranger], compiled),
    }
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
