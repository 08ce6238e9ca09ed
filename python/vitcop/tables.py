"""Tables for the terminal. Needs rich."""

from typing import Any

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .compare import Comparison, Loaded
from .doctor import Check
from .prefill import VISUAL_TOKENS, Prefill

STATES = {"ok": "[green]ok[/green]", "off": "[yellow]off[/yellow]", "missing": "[dim]missing[/dim]"}
STAGES = {
    "stage1": ("I", "[CLS] attention, before the decoder"),
    "stage2": ("II", "clusters and key norms, before layer {layer}"),
    "stage3": ("III", "key norms, before layer {layer}"),
}


def doctor_table(results: list[Check]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Backends and models available on this machine", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for check in results:
        table.add_row(check.name, STATES[check.state], Text(check.detail))
    return table


def stages_table(result: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Stages", title_justify="left")
    for name, justify in (("stage", "left"), ("by", "left"), ("visual tokens", "right"), ("merged", "right"),
                          ("time", "right")):  # fmt: skip
        table.add_column(name, justify=_justify(justify))
    for row in result.stages:
        number, what = STAGES.get(row.name, (row.name, "before layer {layer}"))
        table.add_row(
            number,
            what.format(layer=row.layer),
            f"{row.tokens_in} -> [bold]{row.tokens_out}[/bold]",
            "" if row.merged is None else str(row.merged),
            milliseconds(row.seconds),
        )
    return table


def costs_table(result: Comparison) -> Table:
    report, flops = result.report, result.flops
    before, after = result.unpruned.timing, result.pruned.timing
    total = report.visual_tokens[0]
    table = Table(box=box.SIMPLE_HEAD, title="Costs", title_justify="left")
    for name in ("", "unpruned", "pruned", "saved"):
        table.add_column(name, justify=_justify("right" if name else "left"))
    rows: list[tuple[str, float | None, float | None, Any]] = [
        ("prefill (time to first token)", before.first_token, after.first_token, milliseconds),
        ("decode, per token", before.per_token, after.per_token, milliseconds),
        (f"total, {result.pruned.tokens} tokens", before.total, after.total, milliseconds),
        ("prefill FLOPs, counter", flops.counter_unpruned, flops.counter, quantity),
        ("prefill FLOPs, Eq. 9 of the paper", flops.eq9_unpruned, flops.eq9, quantity),
        ("visual tokens, mean over layers", total, report.mean_tokens, lambda n: f"{n:.1f}"),
        ("KV cache after prefill", report.kv_bytes_unpruned, report.kv_bytes, size),
    ]
    for name, first, second, show in rows:
        if first is None or second is None:
            continue
        table.add_row(name, show(first), show(second), saved(first, second))
    share = result.selection_seconds / after.first_token if after.first_token else 0.0
    table.add_row("selection, % of prefill", "", f"{100 * share:.1f} %", "")
    table.add_row("CR_int (Eq. 10)", "", f"{report.cr_int:.3f}", "")
    return table


def prefill_table(result: Prefill) -> Table:
    unpruned, pruned, selection = result.medians()
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "unpruned", "ViTCoP", "saved"):
        table.add_column(name, justify=_justify("right" if name else "left"))
    table.add_row("prefill (one forward)", milliseconds(unpruned), milliseconds(pruned), saved(unpruned, pruned))
    mean = result.mean_tokens
    table.add_row("visual tokens, mean over layers", f"{VISUAL_TOKENS:.1f}", f"{mean:.1f}", saved(VISUAL_TOKENS, mean))
    table.add_row("selection, % of prefill", "", f"{100 * selection / pruned:.1f} %", "")
    return table


def answers(loaded: Loaded, result: Comparison) -> Group:
    from .embedded import LABEL

    note = f" ({LABEL})" if loaded.random_weights else ""
    panels = [
        Panel(Text(arm.answer or "(empty)"), title=f"answer, {name}{note}", title_align="left", box=box.ROUNDED)
        for name, arm in (("unpruned", result.unpruned), ("pruned", result.pruned))
    ]
    return Group(*panels)


def milliseconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def quantity(value: float) -> str:
    """With an SI prefix: 3.82 T."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.2f} {prefix}"
    return f"{value:.0f}"


def size(value: float) -> str:
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} B"


def saved(before: float, after: float) -> str:
    return "" if before <= 0 else f"{100 * (1 - after / before):.1f} %"


def _justify(value: str) -> Any:
    return value
