"""`vitcop eval`: tasks of lmms-eval under several methods and budgets, in the form of the paper's Table 1."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitcop.compare import UserError

from .settings import NONE, make_method


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    method: str
    budget: dict[str, Any]  # retain or retention, and further options of the method

    @property
    def group(self) -> str:
        if "retain" in self.budget:
            return f"retain {self.budget['retain']} tokens"
        return f"retention {self.budget['retention']:g}" if "retention" in self.budget else ""

    @property
    def name(self) -> str:
        rest = [f"{k}={v}" for k, v in self.budget.items() if k not in ("retain", "retention")]
        return " ".join([self.method, *rest])


@dataclass(frozen=True)
class Row:
    setting: Setting
    scores: dict[str, float]  # by task
    kept: float | None  # visual tokens, mean of layers and prefills
    seen: float | None  # before pruning


def settings_for(
    methods: Sequence[str], retain: Sequence[int], retention: Sequence[float], options: dict[str, Any]
) -> list[Setting]:
    """The unpruned model, then every method at every budget, all of them checked before anything is loaded."""
    budgets: list[dict[str, Any]] = [{"retain": n} for n in retain] + [{"retention": r} for r in retention]
    if not budgets:
        raise UserError("--retain: expected at least one budget, or --retention")
    rows = [Setting(NONE, {})]
    for budget in budgets:
        rows += [Setting(method, {**budget, **options}) for method in methods]
    for row in rows:
        try:
            make_method(row.method, **row.budget)
        except (TypeError, ValueError) as error:
            raise UserError(f"--method {row.method}: {error}") from None
    return rows


def evaluate(
    model: str, tasks: Sequence[str], settings: Sequence[Setting], *, batch_size: int, limit: int | None,
    device: str | None, dtype: str | None, include: Path | None, chat: bool, tell: Callable[[str], None],
    keep: Callable[[Sequence[Row]], None],
) -> list[Row]:  # fmt: skip
    """Run every setting on one copy of the model, and hand over the rows so far after each. Needs lmms-eval."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from .lmms import VitcopLlavaHf, VitcopLlavaHfChat

    kind = VitcopLlavaHfChat if chat else VitcopLlavaHf
    tell(f"loading {model}")
    asked = kind(pretrained=model, method=NONE, batch_size=batch_size, device=device, dtype=dtype)
    for setting in settings:
        _check_budget(asked, setting)
    manager = TaskManager("ERROR", include_path=None if include is None else str(include))
    rows = []
    for setting in settings:
        tell(f"{setting.name} {setting.group}".strip())
        asked.answerer.method = make_method(setting.method, **setting.budget)
        asked.answerer.kept.clear()
        asked.answerer.seen.clear()
        found = simple_evaluate(
            asked, tasks=list(tasks), batch_size=batch_size, limit=limit, task_manager=manager, log_samples=False,
            force_simple=not chat, bootstrap_iters=0, verbosity="ERROR",
        )  # fmt: skip
        if found is None:  # not the main process of several
            continue
        kept, seen = (statistics.fmean(x) if x else None for x in (asked.answerer.kept, asked.answerer.seen))
        rows.append(Row(setting, {task: score(task, found["results"][task]) for task in tasks}, kept, seen))
        keep(rows)
    return rows


def _check_budget(asked: Any, setting: Setting) -> None:
    """Say before the first question what a method cannot do on this model."""
    from vitcop.adapters import adapter_for

    method, adapter = make_method(setting.method, **setting.budget), adapter_for(asked.model)
    if method is None:
        return
    try:
        adapter.fit(method.program(adapter.shape.num_layers))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"--method {setting.name} {setting.group}: {error}") from None


def score(task: str, metrics: dict[str, Any]) -> float:
    """A task's first metric; lmms-eval names them "metric,filter" and gives each an error beside it."""
    numbers = (v for k, v in metrics.items() if "," in k and "_stderr" not in k and isinstance(v, int | float))
    first = next(numbers, None)
    if first is None:
        raise UserError(f"--tasks: {task} has no score that is a number, only {', '.join(metrics) or 'nothing'}")
    return float(first)


def retained(row: Row, baseline: Row) -> dict[str, float | None]:
    """Each score as a share of the unpruned model's; None where that is 0."""
    return {task: row.scores[task] / full if (full := baseline.scores[task]) else None for task in row.scores}


def average(shares: dict[str, float | None]) -> float | None:
    known = [share for share in shares.values() if share is not None]
    return statistics.fmean(known) if known else None


def save(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> Any:
    """The paper's Table 1: scores, and in brackets what is left of the unpruned model's. Needs rich."""
    from rich import box
    from rich.table import Table

    baseline = rows[0]
    drawn = Table(box=box.SIMPLE_HEAD)
    drawn.add_column("method", no_wrap=True)
    for task in baseline.scores:
        drawn.add_column(task, justify="right")
    drawn.add_column("average", justify="right")
    drawn.add_column("visual tokens", justify="right")
    group = ""
    for row in rows:
        if row.setting.group != group:
            group = row.setting.group
            drawn.add_section()
            drawn.add_row(f"[bold]{group}[/bold]")
        shares = retained(row, baseline)
        cells = [
            f"{row.scores[task]:.3f} ({'-' if share is None else f'{share:.1%}'})" for task, share in shares.items()
        ]
        mean, tokens = average(shares), row.seen if row.kept is None else row.kept
        name = "unpruned" if row.setting.method == NONE else row.setting.name
        drawn.add_row(name, *cells, "-" if mean is None else f"{mean:.1%}", "" if tokens is None else f"{tokens:.1f}")
    return drawn
