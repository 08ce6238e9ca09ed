"""The whole report: ceilings, ops, models, targets; one JSON file, whatever happens on the way."""

import contextlib
import datetime
import json
import re
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, commit
from vitcop_kernels.bench.device import Device, versions
from vitcop_kernels.testing.op import Shape

from . import chains, tables, targets
from .budget import Budget, watchdog
from .endtoend import measure_models
from .models import Spec, real_models, tiny_models
from .ops import measure_compiled, measure_ops
from .timing import METHOD, ceilings

SCHEMA = 2
PARTS = ("ops", "models", "compiled")


@dataclass
class Plan:
    """What is run, and for how long."""

    cases: list[tuple[str, Shape]]
    models: list[Spec]
    limit: float = 300.0  # seconds, beside the three minutes of `verification.gpu`
    seconds: float = 0.4  # of timing for one way of one case
    rounds: int = 7
    steps: int = 16
    parts: tuple[str, ...] = PARTS


def plan_for(dry_run: bool, quick: bool = False) -> Plan:
    if dry_run:
        return Plan(chains.cases(small=True), tiny_models(), limit=1800, seconds=0.004, rounds=2, steps=2)
    plan = Plan(chains.cases(small=False), real_models())
    if quick:
        plan.limit, plan.seconds, plan.rounds, plan.steps = 120.0, 0.1, 3, 4
        plan.models = plan.models[:1]
    return plan


def where(device: Device, out: Path | None) -> Path:
    """The folder of the results. A dry run is kept away from the measured ones."""
    if device.dry_run:
        folder = out or RESULTS.parent.parent / "out" / "gpu-dry-run"
        if RESULTS.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"--out: expected a folder outside of {RESULTS} for a dry run, got {folder}")
        return folder
    slug = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    return out or RESULTS / slug


class Report:
    def __init__(self, device: Device, plan: Plan, out: Path | None = None) -> None:
        self.device, self.plan = device, plan
        self.folder = where(device, out)
        self.budget = Budget(plan.limit)
        self._lock = threading.Lock()
        now = datetime.datetime.now(datetime.UTC)
        self.stem = ("DRY-RUN-" if device.dry_run else "") + f"{now:%Y-%m-%d}-{commit()}"
        if plan.parts != PARTS:  # parts run one by one are files of their own
            self.stem += "-" + "-".join(plan.parts)
        about = {"benchmark": "gpu-report", "schema": SCHEMA, "dry_run": device.dry_run, "commit": commit()}
        about |= {"date": now.isoformat("T", "seconds"), "device": device.facts(), "versions": versions()}
        parts: dict[str, Any] = {name: [] for name in ("ops", "models", "targets", "errors", "clocks")}
        self.result: dict[str, Any] = about | {"method": METHOD, "complete": False, "aborted": None, "ceilings": {}}
        self.result |= parts | {"not_measured": self.budget.not_measured}

    @property
    def wrong(self) -> dict[str, str]:
        """Ops that failed their check: a model that calls one is not timed."""
        return {r["op"]: r["why"] for r in self.result["ops"] if r.get("status") == "failed"}

    @property
    def failed(self) -> bool:
        """Whether an op's check or timing, a run of a model, or the report itself failed."""
        records = [*self.result["ops"], *self.result["models"]]
        records += [run for model in self.result["models"] for run in model["runs"]]
        wrong = any(record.get("status") == "failed" for record in records)
        return bool(self.result["errors"] or self.result["aborted"]) or wrong

    def run(self) -> Path:
        dog = watchdog(self.budget, self._abort)
        device, plan, budget, result = self.device, self.plan, self.budget, self.result
        timed: list[Any] = []

        def ops() -> None:
            result["ceilings"] = ceilings(device)
            timed.extend(measure_ops(device, plan.cases, budget, result["ceilings"], plan.seconds, result["ops"]))

        def models() -> None:
            measure_models(device, plan.models, self.wrong, budget, plan.rounds, plan.steps, result["models"])

        def compiled() -> None:
            measure_compiled(device, timed, budget, plan.seconds)

        try:
            for part, do in (("ops", ops), ("models", models), ("compiled", compiled)):
                if part not in plan.parts:
                    budget.skip(part, "not asked for")
                    continue
                with self._recorded(part), budget.part(part):
                    do()
                result["clocks"].append({"after": part} | device.state())
                self._write()
            with self._recorded("targets"):
                result["targets"] = targets.rows(result)
            result["complete"] = set(plan.parts) == set(PARTS) and not result["errors"]
        finally:
            dog.cancel()
        return self._write()

    @contextlib.contextmanager
    def _recorded(self, part: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the other parts go on
            text = f"{type(error).__name__}: {error}"
            self.result["errors"].append({"part": part, "why": text, "traceback": traceback.format_exc()})

    def _abort(self, why: str) -> None:
        self.result["aborted"] = why
        for _ in range(5):
            try:
                path = self._write()
            except RuntimeError:  # the other thread has added to it meanwhile
                continue
            print(f"gpu-report: {why}; {path}", flush=True)
            return

    def _write(self) -> Path:
        with self._lock:
            spent = {"limit_s": self.plan.limit, "spent_s": self.budget.elapsed, "parts_s": dict(self.budget.spent)}
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.stem}.json"
            path.write_text(json.dumps(self.result | {"budget": spent}, default=str) + "\n")
        return path


def run(plan: Plan, device: Device, out: Path | None = None) -> Report:
    report = Report(device, plan, out)
    path = report.run()
    spent = report.budget.elapsed
    print(tables.text(report.result | {"budget": {"spent_s": spent}}))
    print(path)
    return report
