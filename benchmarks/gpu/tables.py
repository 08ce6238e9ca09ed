"""The report as plain text, and the README's block."""

from pathlib import Path
from typing import Any

NONE = "not yet measured on a GPU"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3g}{' ' + unit if unit else ''}"


def text(result: dict[str, Any]) -> str:
    """What a terminal gets."""
    lines = []
    if result["dry_run"]:
        lines.append("DRY RUN on a CPU at toy sizes: no number below says anything about a GPU")
    device = result["device"]
    lines.append(f"{device['name']}, commit {result['commit']}, {result['budget']['spent_s']:.0f} s")
    count: dict[str, int] = {}
    for check in [*result["smoke"], *result["checks"], *result["sanitizer"]]:
        count[check["status"]] = count.get(check["status"], 0) + 1
    lines.append("checks: " + ", ".join(f"{n} {status}" for status, n in sorted(count.items())))
    for check in [*result["smoke"], *result["checks"], *result["sanitizer"]]:
        if check["status"] == "failed":
            what = check.get("item") or check.get("tool") or f"{check['check']}, {check['op']} {check['shape']}"
            lines.append(f"  FAILED {what}: {check['why'][:300]}")
    lines += [
        "",
        f"{'op':22}{'shape':44}{'graph us':>10}{'cold us':>10}{'eager us':>10}{'floor us':>10}{'est. us':>10}",
    ]
    for record in result["ops"]:
        ways = record["ways"].get("vitcop", {})
        shown = [ways.get(mode, {}).get("p50") for mode in ("graph warm", "graph cold", "eager warm")]
        cells = [*shown, record.get("floor_us"), record.get("estimate_us")]
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


def is_measurement(result: dict[str, Any]) -> bool:
    """A finished run on a GPU, and not a dry one."""
    return (
        result.get("benchmark") == "gpu-report"
        and result.get("dry_run") is False
        and result.get("device", {}).get("kind") == "gpu"
    )


def readme_block(results: list[tuple[Path, dict[str, Any]]]) -> str:
    """Targets beside the newest measurement on each GPU; a dry run among the committed results is an error."""
    for path, result in results:
        if not is_measurement(result):
            raise SystemExit(f"{path}: expected a result measured on a GPU, got a dry run or something else; remove it")
    newest: dict[str, dict[str, Any]] = {}
    for _, result in sorted(results, key=lambda found: (found[1]["complete"], found[1]["date"])):
        newest[result["device"]["name"]] = result  # a whole report before a part of one, then the newest
    if not newest:
        return NONE
    return "\n\n".join(_device_block(newest[name]) for name in sorted(newest))


def _device_block(result: dict[str, Any]) -> str:
    lines = ["| | target (H200) | in a graph | eager | |", "|---|--:|--:|--:|---|"]
    for row in result["targets"]:
        said = row["note"].replace("|", "/")[:80] if row["met"] is None else ("met" if row["met"] else "missed")
        measured = NONE if row["measured"] is None else _number(row["measured"], row["unit"])
        target, eager = _number(row["target"], row["unit"]), _number(row["eager"], row["unit"])
        lines.append(f"| {row['name']} | {target} | {measured} | {eager} | {said} |")
    failed = [c for c in [*result["smoke"], *result["checks"], *result["sanitizer"]] if c["status"] == "failed"]
    if failed:
        lines += ["", f"{len(failed)} checks failed; what they concern was not timed."]
    lines += ["", *_prefills(result)]
    versions, state = result["versions"], result["device"]["state"]
    lines += [
        "",
        f"({result['device']['name']}, driver {state.get('driver_version', 'unknown')}, torch {versions['torch']}, "
        f"Triton {versions['triton']}, commit {result['commit']}, {result['date'][:10]}; medians, inputs in L2)",
    ]
    return "\n".join(lines)


def _prefills(result: dict[str, Any]) -> list[str]:
    """Whole prefills, vision tower included, where every way of a batch was measured."""
    head = "| prefill, ms (medians; random weights) | batch | unpruned | ViTCoP, 1/9 of the tokens | in a CUDA graph |"
    lines = [head, "|---|--:|--:|--:|--:|"]
    for model in result["models"]:
        found = {(r["way"], r["batch"]): r for r in model["runs"] if r["retention"] in (None, 1 / 9)}
        for batch in sorted({batch for _, batch in found}):
            ways = [found.get((way, batch), {}).get("total") for way in ("unpruned", "vitcop", "vitcop, graph")]
            cells = ["" if way is None else f"{way['p50'] / 1e3:.1f}" for way in ways]
            if all(cells[:2]):
                lines.append(f"| {model['model']} | {batch} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []
