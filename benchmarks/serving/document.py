"""The tables of docs/serving.md, from one device's results."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.markdown import table

Rows = list[dict[str, Any]]
WORKS = {
    "short": "a new picture and a question, {new} tokens of answer",
    "long": "the same, 128 tokens of answer",
    "text": "a question without a picture, 8 tokens of answer",
}
Measure = tuple[str, str, Callable[[float], str]]
MEASURES: tuple[Measure, ...] = (
    ("requests_per_second", "requests/s", lambda x: f"{x:.2f}"),
    ("first_token_p50", "first token, median", lambda x: f"{1000 * x:.0f} ms"),
    ("first_token_p99", "first token, 99 %", lambda x: f"{1000 * x:.0f} ms"),
    ("tokens_per_second", "answer tokens/s", lambda x: f"{x:.1f}"),
)


def section(found: dict[str, Any]) -> str:
    """Of a CPU ratios to the stock model, each the median of the rounds'; of a GPU the numbers, and the ratios of
    requests/s behind them."""
    ratios = found["device"] == "cpu"
    parts = [f"### {'Two cores of a CPU' if ratios else found['device']}: {found['model']}", ""]
    for work, clients in runs(found["runs"]):
        rows = [row for row in found["runs"] if (row["work"], row["clients"]) == (work, clients)]
        what = WORKS[work].format(new=8)
        parts += [f"{clients} client{'s' if clients > 1 else ''}, {what}:", "", one(rows, ratios), ""]
    where = found["machine"]
    parts.append(
        f"Made by `{found['command']}` at {found['commit']} on {found['date'][:10]}: {where['processor']}, "
        f"{where['threads']} threads, torch {where['torch']}, {found['vllm']}, transformers {found['transformers']}."
    )
    return "\n".join(parts) + "\n"


def runs(rows: Rows) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["work"], row["clients"]) for row in rows))


def one(rows: Rows, ratios: bool) -> str:
    settings = sorted({row["tokens"] for row in rows}, key=lambda tokens: -(tokens or 10**6))
    head = ["tokens of an image", "of a prompt", *(f"{name}{', ratio' if ratios else ''}" for _, name, _ in MEASURES)]
    lines = []
    for setting in settings:
        mine = of(rows, setting)
        line = ["stock" if setting is None else str(setting), str(mine[0]["prompt_tokens"])]
        for key, _, written in MEASURES:
            ratio = statistics.median(a[key] / b[key] for a, b in zip(mine, of(rows, None), strict=True))
            value = written(statistics.median(row[key] for row in mine))
            shown = f"{ratio:.2f}" if ratios else f"{value} ({ratio:.2f})" if key == "requests_per_second" else value
            if ratios and setting is None:
                shown = f"1 ({value})"
            line.append(shown)
        lines.append(line)
    return table(head, lines)


def of(rows: Rows, setting: int | None) -> Sequence[dict[str, Any]]:
    return sorted((row for row in rows if row["tokens"] == setting), key=lambda row: row["round"])
