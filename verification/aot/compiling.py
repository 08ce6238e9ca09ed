"""One configuration to machine code for one GPU, and what the code uses."""

import contextlib
import io
import re
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import plain_options


class Target(NamedTuple):
    name: str
    shared_memory: int  # bytes that a program may use
    sibling: str | None = None  # Triton writes the same PTX for that one

    @property
    def backend(self) -> str:
        return "hip" if self.name.startswith("gfx") else "cuda"

    @property
    def capability(self) -> int:
        return int(self.name[3:]) if self.backend == "cuda" else 0

    @property
    def gpu(self) -> GPUTarget:
        return GPUTarget("hip", self.name, 64) if self.backend == "hip" else GPUTarget("cuda", self.capability, 32)


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", 166912),
        Target("sm_86", 101376),
        Target("sm_89", 101376, "sm_86"),
        Target("sm_90", 232448),
        Target("sm_100", 232448),
        Target("sm_120", 101376),
        Target("gfx942", 65536),
        Target("gfx950", 163840),
    )
}
INSTRUCTIONS = {
    "tcgen05": r"\btcgen05\.mma\b",
    "wgmma": r"\bwgmma\.mma_async\b",
    "mma": r"\bmma\.sync\b",
    "mfma": r"\bv_s?mfma",
}


class Row(NamedTuple):
    """What the code of one program uses. Scratch is memory: spilled vector registers, or a stack."""

    registers: int  # of a thread
    spilled: int  # bytes of vector registers stored to and loaded from scratch
    scratch: int  # bytes of scratch of a thread
    scalar_spills: int  # AMD: scalar registers kept in lanes of vector registers, which is not memory
    shared: int  # bytes of shared memory of a program
    instructions: str  # tensor-core instructions found, "+" between them


def targets_of(spec: AotSpec, wanted: tuple[str, ...] = tuple(TARGETS)) -> list[Target]:
    return [TARGETS[name] for name in wanted if {name, TARGETS[name].backend} & set(spec.backends)]


def compile_spec(spec: AotSpec, targets: list[Target]) -> dict[str, Row]:
    """Rows by target; siblings among the targets share one PTX."""
    rows: dict[str, Row] = {}
    ptx: dict[str, tuple[str, int]] = {}
    for target in targets:
        source = target.sibling or target.name
        if source in ptx:
            text, shared = ptx[source]
            rows[target.name] = _row_of_ptx(text, _assemble(spec, text, target), shared)
            continue
        compiled, log = _compile(spec, target)
        shared = compiled.metadata.shared
        if target.backend == "hip":
            rows[target.name] = _row_of_amdgcn(compiled.asm["amdgcn"], shared)
        else:
            ptx[source] = compiled.asm["ptx"], shared
            rows[target.name] = _row_of_ptx(compiled.asm["ptx"], log, shared)
    return rows


def ptx_of(spec: AotSpec, target: Target) -> str:
    """PTX without the name of its architecture."""
    return _for_architecture(_compile(spec, target)[0].asm["ptx"], "sm_any")


def failures(spec: AotSpec, target: Target, row: Row) -> list[str]:
    """What is wrong with the code, in words; empty if nothing is."""
    found = []
    if (row.spilled or row.scratch) and not spec.optional:
        found.append(f"spills {row.spilled} bytes, {row.scratch} bytes of scratch a thread")
    if row.shared > target.shared_memory:
        found.append(f"takes {row.shared} bytes of shared memory, there are {target.shared_memory}")
    claim = spec.claim(target.backend, target.capability)
    if claim is not None and claim not in row.instructions.split("+"):
        found.append(f"claims {claim}, has {row.instructions or 'no tensor-core instruction'}")
    return [f"{spec.name} on {target.name}: {what}" for what in found]


def _source(spec: AotSpec, target: Target) -> ASTSource:
    names = spec.kernel.arg_names
    signature = {name: spec.signature.get(name, "constexpr") for name in names}
    attributes = {}
    for k, name in enumerate(names):
        known = [["tt.divisibility", 16]] if name in spec.divisible else []
        if target.backend == "hip" and signature[name].startswith("*"):
            known.append(["tt.pointer_range", 32])  # what the launcher says of tensors below 2 GiB
        if known:
            attributes[(k,)] = known
    return ASTSource(spec.kernel, signature, spec.constexprs, attributes)


def _options(spec: AotSpec, target: Target) -> dict[str, Any]:
    options = {
        "num_warps": spec.num_warps,
        "num_stages": spec.num_stages,
        **plain_options(spec.num_warps),
        **spec.options,
    }
    return {name: value for name, value in options.items() if name != "maxnreg" or target.backend == "cuda"}


@contextlib.contextmanager
def _compiler_log() -> Any:
    """Keeps Triton from its cache, and gives what ptxas says."""
    log = io.StringIO()
    before = triton.knobs.nvidia.dump_ptxas_log, triton.knobs.compilation.always_compile
    triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
    try:
        with contextlib.redirect_stdout(log):
            yield log
    finally:
        triton.knobs.nvidia.dump_ptxas_log, triton.knobs.compilation.always_compile = before


def _compile(spec: AotSpec, target: Target) -> tuple[Any, str]:
    with _compiler_log() as log:
        compiled = triton.compile(_source(spec, target), target=target.gpu, options=_options(spec, target))
    return compiled, log.getvalue()


def _assemble(spec: AotSpec, ptx: str, target: Target) -> str:
    """What ptxas says of another architecture's PTX."""
    backend = make_backend(target.gpu)
    options = backend.parse_options(_options(spec, target))
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, _source(spec, target).language)
    with _compiler_log() as log:
        stages["cubin"](_for_architecture(ptx, target.name), {"target": target.gpu, **options.__dict__})
    return log.getvalue()


def _for_architecture(ptx: str, name: str) -> str:
    return re.sub(r"(?m)^\.target sm_\w+", f".target {name}", ptx)


def _row_of_ptx(ptx: str, log: str, shared: int) -> Row:
    stack, stores, loads = _numbers(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    (registers,) = _numbers(r"Used (\d+) registers", log)
    return Row(registers, stores + loads, stack, 0, shared, _instructions(ptx))


def _row_of_amdgcn(text: str, shared: int) -> Row:
    def field(name: str) -> int:
        return _numbers(rf"\.{name}:\s+(\d+)", text)[0]

    spilled = 4 * field("vgpr_spill_count")
    scalar = field("sgpr_spill_count")
    return Row(field("vgpr_count"), spilled, field("private_segment_fixed_size"), scalar, shared, _instructions(text))


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise ValueError(f"the compiler's output: expected one match of {pattern!r}, got {len(found)}:\n{text[-2000:]}")
    groups = found[0] if isinstance(found[0], tuple) else found
    return [int(number) for number in groups]


def _instructions(text: str) -> str:
    return "+".join(name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, text))
