"""The report as plain text."""

from typing import Any


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3g}{' ' + unit if unit else ''}"


def text(result: dict[str, Any]) -> str:
    """What a terminal gets."""
    lines = []
    if result["dry_run"]:
        lines.append("DRY RUN on a CPU at toy sizes: no number below says anything about a GPU")
    device = result["device"]
    lines.append(f"{device['name']}, commit {result['commit']}, {result['budget']['spent_s']:.0f} s")
    lines += [
        "",
        f"{'op':22}{'shape':44}{'graph us':>10}{'cold us':>10}{'eager us':>10}{'floor us':>10}",
    ]
    for record in result["ops"]:
        ways = record["ways"].get("vitcop", {})
        shown = [ways.get(mode, {}).get("p50") for mode in ("graph warm", "graph cold", "eager warm")]
        cells = [*shown, record.get("floor_us")]
        line = f"{record['op']:22}{record['shape']:44}" + "".join(f"{_number(cell):>10}" for cell in cells)
        lines.append(line + ("" if record["status"] == "measured" else f"  {record['status']}: {record['why'][:100]}"))
    lines += [
        "",
        f"{'model':24}{'way':22}{'retention':>10}{'batch':>6}{'prefill ms':>12}{'decoder ms':>12}{'token ms':>10}",
    ]
    for model in result["models"]:
        if model["status"] != "measured":
            lines.append(f"{model['model']:24}{model['status']}: {model['why'][:120]}")
        for run in model["runs"]:
            shown = [run.get("total", {}).get("p50"), run.get("decoder", {}).get("p50"), run.get("decode_us")]
            ms = "".join(
                f"{_number(None if us is None else us / 1e3):>{w}}" for us, w in zip(shown, (12, 12, 10), strict=True)
            )
            line = f"{model['model']:24}{run['way']:22}{_number(run['retention']):>10}{run['batch']:>6}{ms}"
            lines.append(line + ("" if run["status"] == "measured" else f"  {run['status']}: {run['why'][:80]}"))
    lines += ["", f"{'target':84}{'limit':>10}{'measured':>12}{'eager':>10}"]
    for row in result["targets"]:
        said = row["note"][:60] if row["met"] is None else ("met" if row["met"] else "MISSED")
        measured, eager = _number(row["measured"], row["unit"]), _number(row["eager"], row["unit"])
        lines.append(f"{row['name']:84}{_number(row['target'], row['unit']):>10}{measured:>12}{eager:>12}  {said}")
    for skipped in result["not_measured"]:
        lines.append(f"not measured: {skipped['what']} ({skipped['why']})")
    return "\n".join(lines)
