"""The whole report: smoke, checks, ceilings, ops, models, targets; one JSON file, whatever happens on the way."""

import contextlib
import datetime
import json
import os
import re
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost.cases import Case, real_cases, tiny_cases
from benchmarks.harness import RESULTS, commit

from . import plots, tables, targets
from .budget import Budget, watchdog
from .chains import Call, Chain, replacing
from .checks import run_checks
from .device import CudaDevice, Device, DryRun, versions
from .endtoend import measure_models
from .models import Spec, real_models, tiny_models
from .ops import measure_compiled, measure_ops
from .sanitizer import Sanitizer
from .smoke import command, compiling, run_smoke, stop_all
from .timing import METHOD, ceilings

SCHEMA = 1
PARTS = ("smoke", "sanitizer", "checks", "ops", "models", "compiled")


@dataclass
class Plan:
    """What is run, and for how long."""

    cases: list[Case]
    models: list[Spec]
    limit: float = 435.0  # seconds, of the 8 minutes
    repeats: int = 1000
    seconds: float = 0.4  # of timing for one way of one case
    rounds: int = 7
    steps: int = 16
    parts: tuple[str, ...] = PARTS
    one_launch: bool = True  # vic_cluster may take its cooperative launch
    sanitizer: str | None = None  # the tool, if not the one that is found
    replaced: dict[str, Call] = field(default_factory=dict)  # ops exchanged for others, to test the checks


def plan_for(dry_run: bool, quick: bool = False) -> Plan:
    if dry_run:
        return Plan(tiny_cases(), tiny_models(), limit=1800, repeats=3, seconds=0.004, rounds=2, steps=2)
    plan = Plan(real_cases(), real_models())
    if quick:
        plan.limit, plan.repeats, plan.seconds, plan.rounds, plan.steps = 150.0, 100, 0.1, 3, 4
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
        self._timed: list[tuple[Chain, dict[str, Any]]] = []
        now = datetime.datetime.now(datetime.UTC)
        self.stem = ("DRY-RUN-" if device.dry_run else "") + f"{now:%Y-%m-%d}-{commit()}"
        self.result: dict[str, Any] = {
            "benchmark": "gpu-report", "schema": SCHEMA, "dry_run": device.dry_run,
            "date": now.isoformat("T", "seconds"), "commit": commit(), "device": device.facts(),
            "versions": versions(), "method": METHOD, "complete": False, "one_launch": self.plan.one_launch,
            "ceilings": {}, "smoke": [], "sanitizer": [], "checks": [], "wrong": {}, "ops": [], "models": [],
            "targets": [], "not_measured": self.budget.not_measured, "errors": [], "plots": [], "aborted": None,
            "clocks": [],
        }  # fmt: skip

    @property
    def failed(self) -> bool:
        """Whether a check, an op's timing or a run of a model failed, or the report itself did."""
        found = self.result
        records = [*found["smoke"], *found["sanitizer"], *found["checks"], *found["ops"], *found["models"]]
        records += [run for model in found["models"] for run in model["runs"]]
        return bool(found["errors"] or found["aborted"]) or any(r.get("status") == "failed" for r in records)

    def run(self) -> Path:
        dog = watchdog(self.budget, self._abort)
        with self.device.one_launch(False) if not self.plan.one_launch else contextlib.nullcontext():
            self._run_parts(dog)
        with self._recorded("plots"):
            self.result["plots"], why = plots.draw(self.result, self.folder, self.stem)
            if why:
                self.budget.skip("plots", why)
        return self._write()

    def _run_parts(self, dog: threading.Timer) -> None:
        try:
            for part, do in (
                ("smoke", self._smoke), ("checks", self._checks), ("ops", self._ops), ("models", self._models),
                ("compiled", self._compiled),
            ):  # fmt: skip
                with self._recorded(part), self.budget.part(part):
                    do()
                self.result["clocks"].append({"after": part} | self.device.state())
                self._write()
            with self._recorded("targets"):
                self.result["targets"] = targets.rows(self.result)
            self.result["complete"] = set(self.plan.parts) == set(PARTS) and not self.result["errors"]
        finally:
            dog.cancel()
            stop_all()
            self._write()

    @contextlib.contextmanager
    def _recorded(self, part: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the other parts go on
            text = f"{type(error).__name__}: {error}"
            self.result["errors"].append({"part": part, "why": text, "traceback": traceback.format_exc()})

    def _wanted(self, part: str) -> bool:
        if part not in self.plan.parts:
            self.budget.skip(part, "not asked for")
        return part in self.plan.parts

    def _smoke(self) -> None:
        if not self._wanted("smoke"):
            return
        processes = 1 if self.device.dry_run else max(1, min(8, (os.cpu_count() or 2) - 2))
        line = command(dry_run=self.device.dry_run, one_launch=self.plan.one_launch)
        with compiling(line, processes, lambda: self.budget.left):
            records = run_smoke(line, self.budget.left)
        self.result["smoke"] = records
        for record in records:
            if record["status"] == "failed":
                op = record["item"].split()[0]
                self.result["wrong"].setdefault(op, f"small sizes, {record['item']}: {record['why'][:300]}")

    def _checks(self) -> None:
        sanitizer = None
        if self._wanted("sanitizer"):
            sanitizer = Sanitizer(self.device.dry_run, self.plan.sanitizer, self.plan.one_launch)
        if self._wanted("checks"):
            call = replacing(self.plan.replaced)
            # What crashed or hung by itself is not started in this process.
            cases = [c for c in self.plan.cases if not self._crashed(c)]
            run_checks(
                self.device, cases, call, self.budget, self.plan.repeats, self.result["checks"], self.result["wrong"]
            )
        if sanitizer is not None:
            self.result["sanitizer"] = sanitizer.finish(max(5.0, self.budget.left))

    def _crashed(self, case: Case) -> bool:
        from .ops import ops_of

        return bool(ops_of(case) & set(self.result["wrong"]))

    def _unchecked(self) -> dict[str, str]:
        """Ops of which no value was compared: they are not timed either."""
        passed = {c["op"] for c in self.result["checks"] if c["check"] == "float64" and c["status"] == "passed"}
        return {c.op: "its values were not checked" for c in self.plan.cases if c.op not in passed}

    def _ops(self) -> None:
        if not self._wanted("ops"):
            return
        with self._recorded("ceilings"):
            self.result["ceilings"] = ceilings(self.device)
        refused = self._unchecked() | self.result["wrong"]
        self._timed = measure_ops(
            self.device, self.plan.cases, replacing(self.plan.replaced), refused, self.budget, self.result["ceilings"],
            self.plan.seconds, self.result["ops"],
        )  # fmt: skip

    def _models(self) -> None:
        if not self._wanted("models"):
            return
        refused = self._unchecked() | self.result["wrong"]
        measure_models(
            self.device, self.plan.models, refused, self.budget, self.plan.rounds, self.plan.steps,
            self.result["models"],
        )  # fmt: skip

    def _compiled(self) -> None:
        if self._wanted("compiled"):
            measure_compiled(self.device, self._timed, self.budget, self.plan.seconds)

    def _abort(self, why: str) -> None:
        self.result["aborted"] = why
        stop_all()
        for _ in range(5):
            try:
                path = self._write()
            except RuntimeError:  # the other thread has added to it meanwhile
                continue
            print(f"gpu-report: {why}; {path}", flush=True)
            return

    def _write(self) -> Path:
        with self._lock:
            self.result["budget"] = {
                "limit_s": self.plan.limit, "spent_s": self.budget.elapsed, "parts_s": dict(self.budget.spent),
            }  # fmt: skip
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.stem}.json"
            content = json.dumps(self.result, indent=1, default=str) + "\n"
            content = re.sub(r"\[\s+([-+.\de,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", content)
            path.write_text(content)
        return path


def run(plan: Plan, device: Device, out: Path | None = None, quiet: bool = False) -> tuple[Path, Report]:
    report = Report(device, plan, out)
    path = report.run()
    if not quiet:
        print(tables.text(report.result))
        print(path)
    return path, report


def pick_device(dry_run: bool) -> Device:
    if dry_run:
        return DryRun()
    if not torch.cuda.is_available():
        raise SystemExit("gpu-report: no GPU here; --dry-run goes through the motions on a CPU")
    return CudaDevice()
