"""Which ops at which shapes, and what stands beside each."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import peers
from vitcop_kernels.bench import cases
from vitcop_kernels.bench.floor import measure_rates
from vitcop_kernels.bench.measure import Row, add_floor, measure

Shape = tuple[str, dict[str, int], str]
# LLaVA-1.5-7B: 576 visual tokens, of which Stage I keeps 172 (retention 1/9) or 288 (1/3); 864 of LLaVA-NeXT's 2880.
REAL: list[Shape] = [
    ("vic_cluster", {"tokens": 172, "clusters": 21}, "float32"),
    ("vic_cluster", {"tokens": 288, "clusters": 52}, "float32"),
    ("vic_cluster", {"tokens": 576, "clusters": 87}, "float32"),
    ("vic_cluster", {"tokens": 864, "clusters": 104}, "float32"),
    ("vic_cluster", {"tokens": 576, "clusters": 87}, "bfloat16"),
    ("vic_cluster", {"tokens": 288, "clusters": 52, "batch": 8}, "float32"),
    ("vic_cluster_varlen", {"batch": 5, "tokens": 172, "clusters": 21}, "float32"),
    ("attention_saliency", {"heads": 16, "tokens": 577, "head_dim": 64}, "float32"),
    ("attention_saliency", {"heads": 32, "tokens": 633, "head_dim": 128}, "float32"),
    ("select_tokens", {"tokens": 576, "keep": 172}, "float32"),
    ("key_norms", {"tokens": 288}, "float32"),
    ("key_proj_norms", {"tokens": 288}, "float32"),
    ("key_proj", {"tokens": 288}, "float32"),
    ("plan_tokens", {"tokens": 288, "clusters": 52, "budget": 253}, "float32"),
    ("segment_mean", {"tokens": 288, "budget": 253}, "float32"),
    ("segment_mean", {"tokens": 172, "budget": 77}, "bfloat16"),
    ("segment_mean_backward", {"tokens": 288, "budget": 253}, "float32"),
    ("expand_plan", {"tokens": 288, "budget": 253}, "float32"),
    ("compact_sequence", {"tokens": 288, "budget": 253}, "float32"),
]
TINY = {"tokens": 48, "width": 64, "heads": 2, "head_dim": 16, "batch": 1}


def tiny() -> list[Shape]:
    """Every op once, at sizes that take no time: to see that all of it runs."""
    return [
        (op, {name: size for name, size in TINY.items() if name in spec.dims}, "float32")
        for op, spec in cases.SPECS.items()
    ]


def measured(
    shapes: list[Shape],
    *,
    compiled: bool,
    seconds: float,
    device: torch.device,
    quick: bool = False,
    tell: Callable[[str], None] = lambda what: None,
    done: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:
    """Rows and rates. One shape of each op is compiled: compiling takes longer than measuring."""
    dtypes = tuple({dtype for _, _, dtype in shapes})
    rates = measure_rates(device, dtypes, quick)
    rows, seen = [], set()
    for index, (op, dims, dtype) in enumerate(shapes):
        case = cases.build(op, dims, dtype, device)
        compile_this = compiled and op not in seen
        seen.add(op)
        torch._dynamo.reset()  # shapes of other rows would count as recompilations
        skipped = peers.absent(case)
        if compiled and not compile_this:
            skipped["compiled reference"] = "one shape of each op is compiled"
        row = measure(
            case, compiled=compile_this, seconds=seconds, others=peers.others(case, compile_this), skipped=skipped,
            tell=lambda what, case=case, index=index: tell(f"{index + 1}/{len(shapes)} {case.name}: {what}"),
        )  # fmt: skip
        add_floor(row, rates)
        done(row)
        rows.append(row)
    rates = rates.best_of(measure_rates(device, dtypes, quick))
    for row in rows:
        add_floor(row, rates)
    return {"rows": rows, "rates": rates.as_json()}
