"""The project's targets beside what was measured, misses included."""

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
DEVICE = "NVIDIA H200"  # what the targets are for
GRAPH, EAGER = "graph warm", "eager warm"


def rows(result: dict[str, Any]) -> list[Row]:
    """One row a target. `measured` is None where there is no number, and `note` says why."""
    found = [*_ops(result), *_ratios(result), *_models(result)]
    if result["dry_run"]:
        found = [row | {"met": None, "note": "dry run: means nothing"} for row in found]
    elif result["device"]["name"] != DEVICE:
        why = f"target is for {DEVICE}"
        found = [row | {"met": None, "note": f"{why}; {row['note']}" if row["note"] else why} for row in found]
    return found


def _row(
    name: str, target: float, unit: str, measured: float | None, eager: float | None = None, note: str = ""
) -> Row:
    met = None if measured is None else measured <= target
    return dict(name=name, target=target, unit=unit, measured=measured, eager=eager, met=met, note=note)


def _median(record: dict[str, Any], way: str, mode: str) -> float | None:
    return record["ways"].get(way, {}).get(mode, {}).get("p50")


def _why(record: dict[str, Any]) -> str:
    return "" if record["status"] == "measured" else f"{record['status']}: {record.get('why', '')}"[:200]


def _ops(result: dict[str, Any]) -> Iterator[Row]:
    for record in result["ops"]:
        if record["target_us"] is not None:
            measured, eager = (_median(record, "vitcop", mode) for mode in (GRAPH, EAGER))
            name = f"{record['op']} {record['shape']}"
            yield _row(name, record["target_us"], "us", measured, eager, _why(record))


def _ratios(result: dict[str, Any]) -> Iterator[Row]:
    """Of two ways of one case. The projection reads its weights from memory, so there the cold graph counts."""
    for record in result["ops"]:
        if record["op"] != "key_proj_norms":
            continue
        found = {}
        for mode in ("graph cold", EAGER):
            ours, alone = _median(record, "vitcop", mode), _median(record, "projection alone", mode)
            found[mode] = None if ours is None or alone is None else ours / alone
        name = f"key_proj_norms {record['shape']} / projection alone (graph cold: inputs not in L2)"
        yield _row(name, 1.05, "ratio", found["graph cold"], found[EAGER], _why(record))
        break


def _models(result: dict[str, Any]) -> Iterator[Row]:
    names = [model["model"] for model in result["models"]]
    for model in result["models"]:
        runs = {(run["way"], run["retention"]): run for run in model["runs"] if run["batch"] == 1}
        pairs = [run for (way, _), run in runs.items() if way == "vitcop"]
        note = model.get("why", "")
        name = f"{model['model']}: prefill / the same counts with free selection"
        over = [run["over_free"] for run in pairs if "over_free" in run]
        why = note or _first_why(pairs) or ("eager prefills are compared" if over else "")
        yield _row(name, 1.01, "ratio", None, max(over, default=None), why)
        case = {"LLaVA-1.5-7B": 576, "LLaVA-NeXT-7B": 2880}.get(model["model"])
        if case is not None:
            record = next(
                (r for r in result["ops"] if r["op"] == "selection" and r["shape"].startswith(f"tokens={case} ")), None
            )
            shares = []
            for mode, way in ((GRAPH, "vitcop, graph"), (EAGER, "vitcop")):
                us = None if record is None else _median(record, "vitcop", mode)
                prefill = runs.get((way, 1 / 9), {}).get("total", {}).get("p50")
                shares.append(None if us is None or prefill is None else 100 * us / prefill)
            why = note
            if shares[0] is None:
                why = why or runs.get(("vitcop, graph", 1 / 9), {}).get("why", "no graph of both")
            yield _row(f"{model['model']}: selection alone / pruned prefill", 0.5, "%", *shares, why)
        if model["model"] == "LLaVA-NeXT-13B" or (result["dry_run"] and model["model"] == names[0]):
            yield _decoder(model["model"], runs, pairs, note)


def _decoder(name: str, runs: dict[Any, Row], pairs: list[Row], note: str) -> Row:
    """At the strongest pruning, 94.4 %."""
    least = min((run for run in pairs), key=lambda run: run["retention"], default=None)
    eager = None if least is None else least.get("decoder_over_unpruned")
    ratio = None
    if least is not None:
        pruned = runs.get(("vitcop, graph", least["retention"]), {}).get("decoder", {}).get("p50")
        whole = runs.get(("unpruned, graph", None), {}).get("decoder", {}).get("p50")
        ratio = None if pruned is None or whole is None else 100 * pruned / whole
        if ratio is None:
            note = note or runs.get(("vitcop, graph", least["retention"]), {}).get("why", "no graph of both sides")
    eager = None if eager is None else 100 * eager
    return _row(f"{name}: decoder prefill at 94.4 % pruning / unpruned", 9.0, "%", ratio, eager, note)


def _first_why(runs: list[Row]) -> str:
    return next((run["why"] for run in runs if "why" in run), "")
