"""`vitcop bench`: an op at the user's shapes, beside its reference and the floor of this machine."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vitcop_kernels.bench import record
from vitcop_kernels.bench.floor import measure_rates
from vitcop_kernels.bench.measure import OURS, Row, add_floor, measure
from vitcop_kernels.testing import table as ops
from vitcop_kernels.testing.op import Case

from .compare import UserError

SCHEMA = 1


def cases_for(op: str | None, dims: Mapping[str, int], dtype: str, device: torch.device) -> list[Case]:
    """The op at the dimensions given, or every op at its default ones."""
    if op is None and dims:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in dims)
        raise UserError(f"{given}: expected with the name of an op, got it without one")
    if op is not None and op not in ops.TABLE:
        raise UserError(f"op: expected one of {', '.join(ops.TABLE)}, got {op!r}")
    try:
        return [ops.build(name, dims, dtype, device) for name in ([op] if op else ops.TABLE)]
    except ValueError as error:
        name, _, rest = str(error).partition(":")
        raise UserError(f"--{name.replace('_', '-')}:{rest}") from None
    except torch.OutOfMemoryError as error:
        raise UserError(f"not enough memory on {device} ({str(error).splitlines()[0]})") from None


def bench(
    todo: Sequence[Case],
    *,
    compiled: bool = True,
    rounds: int = 31,
    seconds: float = 10.0,
    tell: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure each case, in a record that can be written as JSON.

    `seconds`: about how long the rounds of one may take, without ways that are slow.
    """
    device, dtypes = todo[0].device, tuple({case.dtype_name for case in todo})
    tell("what this machine can do")
    rates = measure_rates(device, dtypes)
    rows = []
    for case in todo:
        say = lambda what, case=case: tell(f"{case.name}: {what}")  # noqa: E731
        rows.append(measure(case, compiled=compiled, rounds=rounds, seconds=seconds, tell=say))
    tell("what this machine can do, once more")
    rates = rates.best_of(measure_rates(device, dtypes))
    for row in rows:
        add_floor(row, rates)
    return described(rows) | {"rates": rates.as_json()}


def described(rows: Sequence[Row]) -> dict[str, Any]:
    """The record of these rows: which machine, versions and commit they come from."""
    return {
        "schema": SCHEMA,
        "benchmark": "bench",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": record.commit(),
        "machine": record.machine(),
        "versions": record.versions(),
        "rows": list(rows),
    }


def save(path: Path, found: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--save: cannot write {path} ({error.strerror})") from None


def table(row: Row) -> Group:
    """Every way of one case; below, what was not run, with the reason."""
    shape = " ".join(f"{name}={size}" for name, size in row["dims"].items())
    found = Table(
        box=box.SIMPLE_HEAD, title=f"{row['op']}  {shape}  {row['dtype']} on {row['device']}", title_justify="left"
    )
    found.add_column("", no_wrap=True)
    for name in ("median", "p20-p80", "95 % CI", "vitcop / it (95 % CI)", "over floor"):
        found.add_column(name, justify="right", overflow="fold")
    floor = row.get("floor_s")
    for name, way in row["ways"].items():
        if "not_run" in way:
            continue
        ratio = row["ratios"].get(name)
        found.add_row(
            Text(name, style="bold" if name == OURS else ""),
            duration(way["median_s"]),
            span(way["p20_s"], way["p80_s"]),
            span(way["low_s"], way["high_s"]),
            "" if ratio is None else f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})",
            "" if not floor else f"{way['median_s'] / floor:.1f} x",
        )
    if floor:
        found.add_row("floor", duration(floor))
    lines = [f"  {name}: not run: {way['not_run']}" for name, way in row["ways"].items() if "not_run" in way]
    if "refused" in row:
        return Group(found.title or "", Text(f"refused: {row['refused']}", style="red"))
    return Group(found, *(Text(line, style="dim") for line in lines))


UNITS = ((1e-3, "µs", 1e6), (1.0, "ms", 1e3), (float("inf"), "s", 1.0))


def duration(seconds: float) -> str:
    unit, scale = next((unit, scale) for limit, unit, scale in UNITS if seconds < limit)
    return f"{_three(seconds * scale)} {unit}"


def span(low: float, high: float) -> str:
    """Both in the unit of the higher."""
    unit, scale = next((unit, scale) for limit, unit, scale in UNITS if high < limit)
    return f"{_three(low * scale)}-{_three(high * scale)} {unit}"


def _three(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
