"""`make gpu-report` without a GPU: its dry run goes every way, and cannot be taken for a measurement."""

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

import vitcop
from benchmarks import readme
from benchmarks.cost.cases import Case, tiny_cases
from benchmarks.gpu import plots, report, sanitizer, tables, targets
from benchmarks.gpu.budget import Budget, watchdog
from benchmarks.gpu.chains import build, ours
from benchmarks.gpu.device import DryRun
from benchmarks.gpu.endtoend import USED, Bench
from benchmarks.gpu.models import TEXT, build_model, methods, prompt, tiny_models
from benchmarks.gpu.ops import measure_compiled, measure_ops
from benchmarks.gpu.smoke import ROOT, environment
from benchmarks.gpu.timing import METHOD, ceilings
from vitcop_kernels.bench.truth import certify, verify

KEY_NORMS = Case("key_norms", {"B": 1, "H": 2, "N": 12, "d": 16}, target_us=1.0)
SELECT = Case("select_tokens", {"B": 1, "N": 24, "K": 8}, "float32", target_us=1.0)
STAGE2 = Case("stage2", {"B": 1, "N": 24, "T": 6, "C": 32, "H": 2, "K": 4, "S": 10})


@pytest.fixture(scope="module", autouse=True)
def _process() -> Iterator[None]:
    """The watchdog may not end pytest (what it aborts is `failed`), nor a dry run leave it with one thread."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.gpu.budget.leave", lambda code: None)
        yield
    torch.set_num_threads(before)


def dry(folder: Path, **changes: Any) -> tuple[dict[str, Any], report.Report]:
    plan = report.plan_for(dry_run=True)
    plan.limit = 3600  # a busy machine is no failure
    for name, value in changes.items():
        setattr(plan, name, value)
    path, done = report.run(plan, DryRun(), folder, quiet=True)
    return json.loads(path.read_text()), done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("dry")
    result, done = dry(folder)
    assert not done.failed, tables.text(result)
    return result | {"folder": folder}


# ---------------------------------------------------------------------------------------------------------- every path
def test_every_part_has_run(whole: dict[str, Any]) -> None:
    assert whole["complete"] and not whole["errors"] and whole["aborted"] is None
    assert set(whole["budget"]["parts_s"]) == {"smoke", "checks", "ops", "models", "compiled"}
    assert whole["budget"]["spent_s"] < whole["budget"]["limit_s"]
    assert all(whole["versions"][name] for name in ("python", "torch", "transformers"))
    assert {record["status"] for record in whole["smoke"]} == {"passed"}
    assert {record["tool"] for record in whole["sanitizer"]} == set(sanitizer.TOOLS)


def test_every_case_is_checked_in_every_way(whole: dict[str, Any]) -> None:
    done = {(c["op"], c["check"]) for c in whole["checks"] if c["status"] == "passed"}
    for case in tiny_cases():
        assert {(case.op, check) for check in ("float64", "graph", "no sync", "repeats")} <= done
    assert ("vic_cluster", "one launch = phases") in done


def test_every_case_has_raw_samples_rates_and_an_estimate(whole: dict[str, Any]) -> None:
    assert [(r["op"], r["shape"]) for r in whole["ops"]] == [(c.op, c.shape) for c in tiny_cases()]
    for record in whole["ops"]:
        assert record["status"] == "measured"
        for mode in METHOD:
            timing = record["ways"]["vitcop"][mode]
            assert len(timing["us"]) >= 2 and timing["p20"] <= timing["p50"] <= timing["p80"]
        assert set(record["rates"]) == {"gbs", "percent_of_copy", "tflops", "percent_of_matmul", "over_floor"}
        assert record["bytes"] > 0 and record["floor_us"] > 0 and record["estimate_us"] > 0
    by_op = {record["op"]: record["ways"] for record in whole["ops"]}
    assert {"eager", "compiled", "as the authors wrote it"} <= set(by_op["vic_cluster"])
    assert "projection alone" in by_op["key_proj_norms"]
    assert by_op["key_norms"]["compiled"]["graph cold"]["p50"] > 0


def test_models_are_measured_in_every_way(whole: dict[str, Any]) -> None:
    models = {model["model"]: model for model in whole["models"]}
    assert set(models) == {spec.name for spec in tiny_models()}
    for model in models.values():
        assert model["status"] == "measured", model
        assert any(run["way"] == "vitcop" and run["status"] == "measured" for run in model["runs"])
    runs = {(run["way"], run["batch"]): run for run in models["tiny LLaVA"]["runs"]}
    pruned = runs["vitcop", 1]
    for what in (
        "total",
        "decoder",
        "free",
        "selection",
        "over_free",
        "over_unpruned",
        "decode_us",
        "kept",
        "kv_bytes",
    ):
        assert what in pruned
    assert pruned["kv_bytes"] < pruned["kv_bytes_unpruned"]
    assert runs["unpruned", 1]["decode_us"] > 0 and runs["unpruned, graph", 1]["decoder"]["p50"] > 0
    assert runs["vitcop", 2]["status"] == "measured"
    assert {"VisionZip-like", "FastV-like", "vitcop, graph"} <= {way for way, _ in runs}
    every = [run for model in models.values() for run in model["runs"]]
    assert {run["status"] for run in every} <= {"measured", "not available", "not captured"}, every
    for way in ("VisionZip-like", "FastV-like"):
        assert any(run["way"] == way and "total" in run for run in models["tiny LLaVA"]["runs"])


def test_text_and_pictures(whole: dict[str, Any]) -> None:
    text = tables.text(whole)
    assert text.startswith("DRY RUN")
    assert all(case.shape in text for case in tiny_cases())
    for name in whole["plots"]:
        assert (whole["folder"] / name).stat().st_size > 1000
    assert len(whole["plots"]) == 2


def test_without_matplotlib_there_are_no_pictures(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written, why = plots.draw(whole, tmp_path, "x")
    assert written == [] and why is not None and "matplotlib" in why


def test_a_bare_python_is_enough() -> None:
    """No command line or table package, no pictures, no native module."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(['typer', 'rich', 'matplotlib', 'vitcop_kernels._C']))"
    code = f"{hidden}; import benchmarks.gpu.__main__ as m; sys.argv = ['gpu', '--help']; m.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout


# -------------------------------------------------------------------------------------------------------- what is wrong
def test_a_wrong_op_is_timed_nowhere(tmp_path: Path) -> None:
    def wrong(keys: Any) -> Any:
        return ours("key_norms", keys) * 1.01

    result, done = dry(
        tmp_path, cases=[KEY_NORMS, SELECT, STAGE2], models=[], replaced={"key_norms": wrong}, parts=("checks", "ops")
    )
    assert done.failed and set(result["wrong"]) == {"key_norms"}
    status = {record["op"]: record for record in result["ops"]}
    assert status["select_tokens"]["status"] == "measured"
    for op in ("key_norms", "stage2"):
        assert status[op]["status"] == "refused" and "wrong: key_norms" in status[op]["why"]
        assert status[op]["ways"] == {} and "rates" not in status[op]
    target = next(row for row in result["targets"] if row["name"].startswith("key_norms"))
    assert target["measured"] is None and target["eager"] is None


def test_a_model_that_needs_a_wrong_op_is_timed_only_unpruned(tmp_path: Path) -> None:
    def wrong(scores: Any, k: int, **options: Any) -> Any:
        return ours("select_tokens", scores, k, **options).flip(-1)

    result, _ = dry(
        tmp_path,
        cases=[SELECT],
        models=tiny_models()[:1],
        replaced={"select_tokens": wrong},
        parts=("checks", "models"),
    )
    runs = result["models"][0]["runs"]
    assert {run["status"] for run in runs if run["way"] == "vitcop"} == {"refused"}
    assert all("total" not in run for run in runs if run["way"] == "vitcop")
    assert any(run["way"] == "unpruned" and "total" in run for run in runs)


def test_a_failed_run_of_a_model_fails_the_report(tmp_path: Path) -> None:
    done = report.Report(DryRun(), report.plan_for(dry_run=True), tmp_path)
    assert not done.failed
    done.result["models"] = [{"model": "x", "status": "measured", "runs": [{"way": "vitcop", "status": "measured"}]}]
    assert not done.failed
    done.result["models"][0]["runs"].append({"way": "vitcop, graph", "status": "failed", "why": "other logits"})
    assert done.failed


def test_every_op_that_a_model_calls_is_checked_before_it() -> None:
    called: set[str] = set()

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "vitcop":
                called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    for spec in tiny_models():
        model, inputs = build_model(spec, torch.device("cpu")), prompt(spec, 1, torch.device("cpu"))
        with torch.no_grad(), vitcop.prune(model, methods(spec.retentions[-1])["vitcop"]), Calls():
            model(**inputs, use_cache=True, logits_to_keep=1)
    assert {"vic_cluster", "expand_plan", "compact_sequence"} <= called <= USED


@pytest.mark.parametrize("masked", [False, True])
def test_the_unpruned_graph_has_no_mask(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While capturing, transformers may not look at values, and makes a mask where it would have to."""
    spec = tiny_models()[0]
    device, model = DryRun(), build_model(spec, torch.device("cpu"))
    bench = Bench(device, spec, model, 1, {}, Budget(60), 1, 1, [])
    bench.inputs = prompt(spec, 1, device.device)
    capture = device.capture

    def capturing(way: Any) -> Any:
        monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True, raising=False)
        return capture(way)

    monkeypatch.setattr(device, "capture", capturing)
    with torch.no_grad():
        if not masked:
            assert bench._unpruned_graph()["decoder"]["p50"] > 0
            return
        decoder = model.model.language_model
        n = spec.visual + TEXT
        mask = torch.zeros(1, 1, n, n, dtype=torch.bfloat16)
        decoder.layers[1].register_forward_pre_hook(lambda _, a, k: (a, k | {"attention_mask": mask}), with_kwargs=True)
        with pytest.raises(AssertionError, match="given a mask"):
            bench._unpruned_graph()


def _drifting() -> Any:
    count = itertools.count()
    return lambda keys: ours("key_norms", keys) * (1 + 1e-7 * (next(count) // 2))


def _reading(keys: Any) -> Any:
    found = ours("key_norms", keys)
    return found / float(found.sum() >= 0)


@pytest.mark.parametrize(("replacement", "check"), [(_drifting(), "repeats"), (_reading, "no sync")])
def test_each_check_can_fail(replacement: Any, check: str, tmp_path: Path) -> None:
    result, done = dry(
        tmp_path, cases=[KEY_NORMS], models=[], replaced={"key_norms": replacement}, repeats=20, parts=("checks",)
    )
    assert done.failed
    assert check in {c["check"] for c in result["checks"] if c["status"] == "failed"}


def test_clusterings_that_are_wrong_are_told_from_near_ties() -> None:
    chain = build(tiny_cases()[0], torch.device("cpu"))
    calls: list[Any] = []

    def keep(op: str, *args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return ours(op, *args, **kwargs)

    right = chain.run(keep, *chain.inputs)
    args, kwargs = calls[0]
    verify("vic_cluster", args, kwargs, right)
    features, places, *numbers = args
    other_truth = [torch.zeros_like(t[0]) for t in right]  # so that the answer has to stand by itself
    certify(features[0], places, *numbers, [t[0] for t in right], other_truth)
    child = int((right[2][0] >= 0).nonzero()[0])
    other = next(i for i in range(24) if i not in (child, int(right[2][0, child])))
    center, outside = int(right[1][0, 0]), next(i for i in range(24) if i not in right[1][0].tolist())

    def label(out: Any) -> None:
        out[0][0, outside] = (out[0][0, outside] + 1) % 4

    def parent(out: Any) -> None:
        out[2][0, child] = other

    def centers(out: Any) -> None:
        out[1][0] = torch.tensor(sorted({*out[1][0].tolist(), outside} - {center}))

    def delta(out: Any) -> None:
        out[4][0, child] *= 1.01
        out[2][0, child] = other

    def rho(out: Any) -> None:
        out[3][0, child] *= 1.01

    for change in (label, parent, centers, delta, rho):
        out = [t.clone() for t in right]
        change(out)
        with pytest.raises(AssertionError):
            verify("vic_cluster", args, kwargs, out)


def test_a_failing_piece_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    result, done = dry(tmp_path, cases=[Case("nonsense", {"N": 1}), SELECT], models=[], parts=("checks", "ops"))
    broken = next(c for c in result["checks"] if c["op"] == "nonsense")
    assert done.failed and broken["status"] == "failed" and "Traceback" in broken["traceback"]
    assert any(r["op"] == "select_tokens" and r["status"] == "measured" for r in result["ops"])


# ------------------------------------------------------------------------------------------------------ time and memory
def test_what_does_not_fit_the_time_is_listed(tmp_path: Path) -> None:
    result, _ = dry(tmp_path, cases=[SELECT], models=tiny_models()[:1], limit=0.0, parts=("checks", "ops", "models"))
    missed = {entry["what"] for entry in result["not_measured"] if entry["why"] == "time"}
    assert "inputs of select_tokens N=24 K=8 float32".replace("N=24", "B=1 N=24") in missed
    assert "build tiny LLaVA" in missed
    assert all(r["ways"] == {} for r in result["ops"])


def test_a_piece_that_overruns_is_stopped() -> None:
    budget = Budget(0.05)

    def forever() -> None:
        while True:
            sum(range(1000))

    found, error = budget.piece("forever", forever, grace=0.05)
    assert found is None and error == {"status": "not measured", "why": "time"}
    assert budget.not_measured == [{"what": "forever", "why": "time: stopped on the way"}]


def test_the_watchdog_writes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []
    monkeypatch.setattr("benchmarks.gpu.budget.leave", left.append)
    budget = Budget(0.0)
    budget.in_flight = "a kernel that hangs"
    watchdog(budget, left.append, grace=0.01).join()
    assert "a kernel that hangs" in left[0] and left[1] == 3


def test_a_model_too_large_for_the_device_is_left_out(tmp_path: Path) -> None:
    device = DryRun()
    device.free_bytes = lambda: 1000  # type: ignore[method-assign]
    plan = report.plan_for(dry_run=True)
    plan.parts, plan.models, plan.cases = ("models",), tiny_models()[:1], []
    path, _ = report.run(plan, device, tmp_path, quiet=True)
    model = json.loads(path.read_text())["models"][0]
    assert model["status"] == "not measured" and model["why"].startswith("memory")


# ------------------------------------------------------------------------------------- a dry run is not a measurement
def test_a_dry_run_says_so_everywhere(whole: dict[str, Any]) -> None:
    assert whole["dry_run"] is True and whole["device"]["kind"] == "cpu, dry run"
    files = [path.name for path in whole["folder"].iterdir()]
    assert files and all(name.startswith("DRY-RUN-") for name in files)
    assert whole["targets"] and all(row["met"] is None and "dry run" in row["note"] for row in whole["targets"])
    assert not tables.is_measurement(whole)


def test_a_dry_run_is_kept_out_of_the_results_and_of_the_readme(whole: dict[str, Any]) -> None:
    for folder in (report.RESULTS, report.RESULTS / "nvidia-h200"):
        with pytest.raises(ValueError, match="expected a folder outside"):
            report.where(DryRun(), folder)
    assert report.RESULTS not in report.where(DryRun(), None).parents
    with pytest.raises(SystemExit, match="expected a result measured on a GPU"):
        tables.readme_block([(Path("x.json"), whole)])


def test_the_readme_says_that_nothing_was_measured_until_something_is() -> None:
    assert tables.readme_block([]) == "not yet measured on a GPU"
    if not readme.gpu_results():
        assert readme.blocks()["gpu"] == "not yet measured on a GPU"


def test_the_readme_shows_targets_met_missed_and_not_measured(whole: dict[str, Any]) -> None:
    made_up = copy.deepcopy({name: value for name, value in whole.items() if name != "folder"})
    made_up["dry_run"], made_up["device"] = False, made_up["device"] | {"kind": "gpu", "name": "NVIDIA H200"}
    made_up["ops"][0]["ways"]["vitcop"]["graph warm"]["p50"] = 1e9
    made_up["ops"][2]["ways"]["vitcop"]["graph warm"]["p50"] = 1e-9
    made_up["ops"][3] |= {"status": "refused", "why": "wrong: x", "ways": {}, "target_us": 1.0}
    made_up["targets"] = targets.rows(made_up)
    part = {**made_up, "complete": False, "date": "9999", "targets": []}
    block = tables.readme_block([(Path("x.json"), made_up), (Path("y.json"), part)])
    rows = {line.split()[1]: line for line in block.splitlines()[2:] if line.startswith("| ")}
    assert rows["vic_cluster"].endswith("| missed |") and rows["attention_saliency"].endswith("| met |")
    assert "not yet measured on a GPU" in rows["select_tokens"] and "refused" in rows["select_tokens"]
    made_up["device"]["name"] = "NVIDIA GH200 480GB"
    assert all(r["met"] is None and r["note"].startswith("target is for H200") for r in targets.rows(made_up))


def test_a_graph_is_compared_with_a_graph() -> None:
    def run(way: str, us: float, **more: Any) -> dict[str, Any]:
        return {"way": way, "retention": 1 / 9, "batch": 1, "total": {"p50": us}} | more

    op = {"op": "selection", "shape": "M=576 H=16", "target_us": None, "status": "measured",
          "ways": {"vitcop": {"graph warm": {"p50": 40.0}, "eager warm": {"p50": 300.0}}}}  # fmt: skip
    model = {
        "model": "LLaVA-1.5-7B",
        "runs": [run("vitcop", 30000.0, over_free=1.005), run("vitcop, graph", 10000.0)],
    }
    made_up = {"dry_run": False, "device": {"name": "NVIDIA H200"}, "ops": [op], "models": [model]}
    free, share = targets.rows(made_up)
    assert free["eager"] == 1.005 and free["measured"] is None and free["met"] is None and "eager" in free["note"]
    assert share["measured"] == pytest.approx(0.4) and share["eager"] == pytest.approx(1.0) and share["met"] is True
    del model["runs"][1]
    assert targets.rows(made_up)[1]["measured"] is None


def test_a_device_lost_to_a_compiled_peer_stops_the_compiled_peers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    device, budget, records = DryRun(), Budget(60.0), []  # type: ignore[var-annotated]
    found = ceilings(device)
    timed = measure_ops(device, [SELECT, KEY_NORMS], ours, {}, budget, found, 0.004, records)

    def lost(*inputs: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(device, "compile", lambda function: lost)
    measure_compiled(device, timed, budget, 0.004)
    first, second = (record["ways"] for record in records)
    assert first["compiled"]["status"] == "failed" and "device-side assert" in first["compiled"]["why"]
    assert second["compiled"]["status"] == "not measured" and "select_tokens" in second["compiled"]["why"]
    assert all(ways["vitcop"]["graph warm"]["p50"] > 0 and "eager" in ways for ways in (first, second))


def test_the_readme_shows_prefills_where_both_sides_were_measured() -> None:
    def run(way: str, batch: int, us: float | None, retention: float | None = 1 / 9) -> dict[str, Any]:
        return {"way": way, "batch": batch, "retention": retention} | ({} if us is None else {"total": {"p50": us}})

    runs = [
        run("unpruned", 1, 30000.0, None), run("vitcop", 1, 45000.0), run("vitcop, graph", 1, 20000.0),
        run("vitcop", 1, 1.0, 1 / 3),  # of another retention
        run("unpruned", 4, 80000.0, None), run("vitcop", 4, 40000.0),
        run("unpruned", 8, 160000.0, None), run("vitcop", 8, None),  # failed
    ]  # fmt: skip
    lines = tables._prefills({"models": [{"model": "LLaVA", "runs": runs}]})
    assert lines[2:] == ["| LLaVA | 1 | 30.0 | 45.0 | 20.0 |", "| LLaVA | 4 | 80.0 | 40.0 |  |"]
    assert tables._prefills({"models": [{"model": "LLaVA", "runs": runs[-2:]}]}) == []
