"""verification/results/aot.md, from the committed results."""

from collections import Counter

from vitcop_kernels._aot import AotSpec

from .compiling import TARGETS, Row, Target, targets_of
from .results import ROOT, VERSIONS, Entry, Specs, problems, read, rows_of

PATH = ROOT / "verification" / "results" / "aot.md"
HEAD = """# Kernels compiled ahead of time

No GPU is needed to see what a kernel compiles to: `python -m verification.aot` compiles every configuration that
dispatch can choose, for {targets}, and writes this page from
`verification/results/aot/`. Nothing here ran, and nothing here says how fast a kernel is. Compilers: {compilers}.

{verdict}

`verification/tests/test_aot.py` fails on a spill, on scratch memory, on more shared memory than the GPU gives a
program, on a claimed tensor-core instruction that is not in the code, and on a table that the kernels have moved away
from; it also compiles a few configurations anew. After a change of a kernel run `python -m verification.aot` with each
version of Triton: it compiles what has changed.

## What stands for what

Dispatch chooses from more combinations of options than are compiled here. Kept are every kernel, every phase, every
tile, every number of warps and of stages, and every class of dtypes. One stands for many where the code differs little:

- bfloat16 stands for float16, which differs in loads and the type of the product, but for one configuration of each
  kernel with a product.
- A configuration called "every option" has all options of `vic_cluster` that add code. Options that are compiled alone:
  `semantics="released"`, `metric="cosine"` and `density="knn"`.
- Strides and widths are multiples of 16, as with the models; "odd width" is not. Tensors are below 2 GiB.
- A padded number of tokens stands for those below it, `head_dim` and widths for those of the same blocks.
- `verification/aot/dispatch.py` runs the launchers without compiling and names what they ask for that nothing here
  stands for; `make aot-check` fails on it.
- sm_89 is assembled from the PTX of sm_86, which is the PTX that Triton writes for it: the test compares. (With Triton
  3.6 it is the PTX of sm_80 too.)

Registers and scratch are per thread, shared memory per program, each the largest of an op; two numbers are of Triton
{versions}. *Scalar spills* happen on AMD GPUs only: a scalar register is kept in a lane of a vector register, and the
code takes no scratch memory for it. They count as no spill; a vector register that goes to memory does.

There is no CUDA C++ in vitcop (`csrc/cuda` is empty until a kernel is measured to be faster than Triton's), so nothing
else runs on a GPU.
"""


def write(specs: Specs) -> None:
    PATH.write_text(render(specs))


def render(specs: Specs) -> str:
    results = {version: read(version) for version in VERSIONS}
    entries = {version: result["entries"] for version, result in results.items()}
    wrong = [f"- Triton {v}: {what}" for v in VERSIONS for what in problems(specs, entries[v])]
    count = sum(len(targets_of(spec)) for of_op in specs.values() for spec in of_op)
    number = sum(map(len, specs.values()))
    fine = f"All {number} configurations, {count} pairs of configuration and GPU, compile and have the tensor-core "
    fine += "instructions that they claim. None spills but the one cooperative launch of `vic_cluster` in some places: "
    fine += "dispatch asks the compiled code, and goes phase by phase where it does."
    text = HEAD.format(
        targets=", ".join(TARGETS),
        versions=" / ".join(VERSIONS),
        compilers="; ".join(_compilers(results[v].get("about", {})) for v in VERSIONS),
        verdict="**Wrong at present:**\n\n" + "\n".join(wrong) if wrong else fine,
    )
    return text + "".join(_section(op, of_op, entries) for op, of_op in specs.items())


def _compilers(about: dict[str, str]) -> str:
    assemblers = ", ".join(f"{version} {name[6:]}" for name, version in about.items() if name.startswith("ptxas"))
    return f"Triton {about.get('triton', 'not there yet')} (ptxas {assemblers})"


def _section(op: str, specs: list[AotSpec], entries: dict[str, dict[str, Entry]]) -> str:
    kernels = Counter(spec.name.split("[")[0].split(":")[-1] for spec in specs)
    lines = [
        f"\n## {op}\n",
        f"{len(specs)} configurations: " + ", ".join(f"{name} {n}" for name, n in kernels.items()) + ".\n",
        "| target | configurations | registers | spilled | scratch | scalar spills | shared memory | tensor cores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS.values():
        here = [spec for spec in specs if target in targets_of(spec)]
        if here:
            lines.append(_line(target, here, entries))
    return "\n".join(lines) + "\n"


def _line(target: Target, specs: list[AotSpec], entries: dict[str, dict[str, Entry]]) -> str:
    rows = [
        [
            rows_of(entries[v][s.name])[target.name]
            for s in specs
            if target.name in entries[v].get(s.name, _NONE)["rows"]
        ]
        for v in VERSIONS
    ]
    claims = Counter(spec.claim(target.backend, target.capability) for spec in specs)
    products = ", ".join(f"{name} {n}" for name, n in claims.items() if name) or "none claimed"
    figures = [_both(rows, name) for name in ("registers", "spilled", "scratch", "scalar_spills", "shared")]
    return f"| {target.name} | {len(specs)} | {' | '.join(figures)} | {products} |"


_NONE: Entry = {"rows": {}}


def _both(rows: list[list[Row]], name: str) -> str:
    largest = [str(max(getattr(row, name) for row in of_version)) if of_version else "?" for of_version in rows]
    return " / ".join(dict.fromkeys(largest))
