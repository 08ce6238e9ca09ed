"""The parts that measure: statistics of known samples, turns, the check before the clock, and counts of the work."""

import json
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.cost.cases import Case as CostCase
from benchmarks.cost.gpus import GPUS
from benchmarks.cost.work import Chip, work_of
from vitcop_kernels.bench import cases, record, sampling
from vitcop_kernels.bench.floor import Rates, measure_rates
from vitcop_kernels.bench.measure import COMPILED, OURS, REFERENCE, WrongAnswer, add_floor, gate, measure
from vitcop_kernels.bench.statistics import interval, quantiles, summary


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than one alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FakeClock:
    """Time that passes only where a way says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self, way, count: int) -> float:
        start = self.now
        for _ in range(count):
            way()
        return (self.now - start) / count


def taking(clock: FakeClock, calls: list[str], name: str, seconds) -> sampling.Way:
    def way() -> None:
        calls.append(name)
        clock.now += seconds() if callable(seconds) else seconds

    return way


# ----------------------------------------------------------------------------------------------------------- statistics
def test_median_and_percentiles_of_known_samples():
    found = summary([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    assert (found.p20, found.median, found.p80, found.count) == pytest.approx((2.0, 3.5, 5.0, 6))
    assert found.low <= found.median <= found.high
    assert quantiles([7.0]) == {"p20": 7.0, "p50": 7.0, "p80": 7.0}


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    """200 draws of 25 samples: of a 95 % interval, more than 20 misses (5 sigma) would be a wrong one."""
    random = np.random.default_rng(1)
    missed = sum(
        not (low <= 0 <= high) for low, high in (interval([random.standard_normal(25)], seed=k) for k in range(200))
    )
    assert missed <= 20


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    samples = np.random.default_rng(2).gamma(2.0, size=40)
    want = stats.bootstrap((samples,), np.median, method="percentile", n_resamples=4000, rng=3).confidence_interval
    low, high = interval([samples])
    # Both draw anew; the ends of a bootstrap interval of a median are samples, so they differ by a step or two.
    assert abs(low - want.low) < 0.15 and abs(high - want.high) < 0.15


def test_what_differs_between_groups_widens_the_interval():
    random = np.random.default_rng(3)
    groups = [list(shift + 0.01 * random.standard_normal(20)) for shift in (0.0, 0.5, 1.0)]
    low, high = interval(groups)
    assert low < 0.1 and high > 0.9
    flat_low, flat_high = interval([[sample for group in groups for sample in group]])
    assert high - low > flat_high - flat_low


def test_the_same_samples_give_the_same_interval():
    groups = [[1.0, 4.0, 2.0, 8.0], [3.0, 5.0, 7.0, 6.0]]
    assert interval(groups) == interval(groups)
    assert interval(groups[:1]) == interval(groups[:1])


@pytest.mark.parametrize("groups", [[], [[]], [[1.0, 2.0], [3.0]]])
def test_groups_of_different_lengths_or_none_are_refused(groups):
    with pytest.raises(ValueError, match="groups: expected some of one length, none empty, got lengths"):
        interval(groups)


# ---------------------------------------------------------------------------------------------------------------- turns
def test_turns_go_forwards_and_backwards():
    assert list(sampling.turns(["a", "b", "c"], 3)) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_calls_are_interleaved_in_turns():
    clock, calls = FakeClock(), []
    ways = {name: taking(clock, calls, name, 0.1) for name in "ab"}
    sampling.sample(ways, rounds=4, shortest=0.05, clock=clock)
    assert "".join(calls) == "aabb" + "abbaabba"  # two calls of each to learn how long it takes, then rounds


def test_a_short_call_is_repeated_and_warmed_up():
    clock, calls = FakeClock(), []
    found = sampling.sample({"a": taking(clock, calls, "a", 0.001)}, rounds=5, shortest=0.0045, clock=clock)
    assert found["a"] == pytest.approx(dict.fromkeys(range(5), 0.001))
    assert len(calls) == 2 + 5 * (1 + 4)


def test_drift_cancels_in_paired_ratios():
    """The machine slows down by half from the first round to the last: medians of times drift, the ratio does not."""
    clock, calls, speed = FakeClock(), [], iter(np.linspace(1.0, 2.0, 1000))
    now = [1.0]

    def slower(share: float):
        def seconds() -> float:
            now[0] = next(speed)
            return share * now[0]

        return seconds

    ways = {"ours": taking(clock, calls, "o", slower(0.06)), "other": taking(clock, calls, "x", slower(0.12))}
    samples = sampling.sample(ways, rounds=20, shortest=0.01, clock=clock)
    assert sampling.paired_ratio(samples, "ours", "other").median == pytest.approx(0.5, rel=2e-3)
    first, *_, last = sampling.times(samples, "ours")
    assert last > first


def test_a_slow_way_comes_in_few_rounds_and_pairs_with_those():
    clock, calls = FakeClock(), []
    ways = {"ours": taking(clock, calls, "o", 0.01), "slow": taking(clock, calls, "s", 2.0)}
    samples = sampling.sample(ways, rounds=21, clock=clock)
    assert sorted(samples["slow"]) == [0, 5, 10, 15, 20]
    assert len(samples["ours"]) == 21
    assert sampling.ratios(samples, "ours", "slow") == pytest.approx([0.005] * 5)


def test_a_budget_shortens_the_run_but_not_below_the_least():
    clock, calls = FakeClock(), []
    way = taking(clock, calls, "a", 0.1)
    assert len(sampling.sample({"a": way}, rounds=100, clock=clock, budget=1.0)["a"]) == 10
    assert len(sampling.sample({"a": way}, rounds=100, clock=clock, budget=0.0)["a"]) == sampling.LEAST


# -------------------------------------------------------------------------------------------- the check, the record
SMALL = {"tokens": 24, "width": 16, "clusters": 4}


def test_a_wrong_answer_is_refused_before_any_timing(monkeypatch):
    case = cases.build("vic_cluster", SMALL)
    right = case.run()
    wrong = (right[0].roll(1), *right[1:])
    monkeypatch.setattr(type(case), "run", lambda self: wrong)
    monkeypatch.setattr("vitcop_kernels.bench.measure.sample", lambda *_, **__: pytest.fail("timed a wrong answer"))
    with pytest.raises(WrongAnswer, match=r"vic_cluster batch=1 tokens=24 width=16 clusters=4 float32: .*label"):
        gate(case)
    row = measure(case)
    assert "label" in row["refused"]
    assert row["ways"] == {} and row["ratios"] == {}


def test_what_fails_or_answers_wrongly_is_named_with_its_reason():
    case = cases.build("select_tokens", {"tokens": 20, "keep": 5})

    def breaks() -> None:
        raise RuntimeError("no such library\nand more")

    def refuse(answer: object) -> None:
        raise AssertionError("another answer")

    others = {"broken": (breaks, None), "wrong": (case.run, refuse), "fine": (case.run, lambda answer: None)}
    row = measure(case, compiled=False, others=others, skipped={"absent": "not installed"}, rounds=5, seconds=0.0)
    assert {name: way.get("not_run") for name, way in row["ways"].items()} == {
        "absent": "not installed", "broken": "RuntimeError: no such library", "wrong": "AssertionError: another answer",
        OURS: None, REFERENCE: None, "fine": None,
    }  # fmt: skip
    assert set(row["ratios"]) == {REFERENCE, "fine"}


def test_a_row_holds_raw_samples_intervals_and_a_floor():
    case = cases.build("key_norms", {"tokens": 12, "heads": 2, "head_dim": 8})
    row = measure(case, compiled=False, rounds=6)
    rates = measure_rates(torch.device("cpu"), quick=True)
    add_floor(row, rates)
    row = json.loads(json.dumps(row))
    ours = row["ways"][OURS]
    samples = list(ours["samples_s"].values())
    assert len(samples) == ours["count"] == 6
    assert ours["median_s"] == statistics.median(samples)
    assert ours["p20_s"] <= ours["median_s"] <= ours["p80_s"] and ours["low_s"] <= ours["median_s"] <= ours["high_s"]
    assert row["bytes"] == 2 * 12 * 8 * 4 + 12 * 4
    assert row["floor_s"] >= rates.call_seconds > 0
    assert COMPILED not in row["ways"]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_reference_is_the_reference():
    case = cases.build("key_norms", {"tokens": 12, "heads": 2, "head_dim": 8})
    torch._dynamo.reset()
    assert torch.equal(case.compiled_reference()(), case.reference())


def test_a_commit_is_marked_where_code_has_changed_and_not_where_results_have(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    results = tmp_path / "benchmarks" / "results" / "speed.json"
    results.parent.mkdir(parents=True)
    for file in (results, tmp_path / "code.py"):
        file.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = record.commit(tmp_path / "benchmarks")
    assert re.fullmatch("[0-9a-f]{12}", clean)
    results.write_text("2")
    assert record.commit(tmp_path / "benchmarks") == clean
    (tmp_path / "code.py").write_text("2")
    assert record.commit(tmp_path / "benchmarks") == f"{clean}-dirty"


def test_a_record_names_machine_versions_and_commit():
    assert {"processor", "threads", "load_average", "torch", "native"} <= set(record.machine())
    assert record.versions()["torch"] == torch.__version__
    assert record.commit()


# ------------------------------------------------------------------------------------------------------ cases and floor
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", cases.SPECS)
def test_every_op_has_a_case_that_passes_its_check(op, dtype):
    small = {"tokens": 40, "width": 64, "heads": 2, "head_dim": 16, "batch": 2}
    given = {name: size for name, size in small.items() if name in cases.SPECS[op].dims}
    gate(cases.build(op, given, dtype))


def test_every_op_is_there():
    import vitcop_kernels

    assert set(cases.SPECS) == {name for name in vitcop_kernels.__all__ if hasattr(torch.ops.vitcop, name)}


@pytest.mark.parametrize(
    ("op", "dims"),
    [
        ("vic_cluster", {"B": 2, "N": 40, "D": 64, "K": 6}),
        ("select_tokens", {"B": 2, "N": 40, "K": 9}),
        ("key_norms", {"B": 2, "H": 2, "N": 40, "d": 16}),
        ("key_proj", {"B": 2, "N": 40, "C": 64, "J": 64, "H": 2}),
        ("segment_mean", {"B": 2, "N": 40, "C": 64, "S": 18}),
        ("plan_tokens", {"B": 2, "N": 40, "K": 5, "S": 18}),
    ],
)
def test_bytes_and_flops_are_those_of_the_cost_model(op, dims):
    """Two counts of the same work: from tensors here, from formulas there."""
    names = {"B": "batch", "N": "tokens", "D": "width", "C": "width", "H": "heads", "d": "head_dim", "S": "budget"}
    ours = {names[d]: size for d, size in dims.items() if d in names}
    ours["keep" if op == "select_tokens" else "clusters"] = dims.get("K", 1)
    ours = {name: size for name, size in ours.items() if name in cases.SPECS[op].dims}
    case = cases.build(op, ours)
    work = work_of(CostCase(op, dims, "float32"), Chip(GPUS["H100"].sms))
    assert case.bytes(case.run()) == work.bytes
    if op not in ("plan_tokens",):
        assert case.flops == sum(work.flops.values())


@pytest.mark.parametrize(
    ("op", "given", "message"),
    [
        ("cluster", {}, "op: expected one of vic_cluster, .*, got 'cluster'"),
        ("vic_cluster", {"heads": 2}, "heads: vic_cluster has no such dimension; expected some of batch, tokens"),
        ("vic_cluster", {"tokens": 0}, "tokens: expected at least 1, got 0"),
        ("vic_cluster", {"tokens": 5, "clusters": 6}, "clusters: expected at most the 5 tokens, got 6"),
        ("select_tokens", {"tokens": 5, "keep": 6}, "keep: expected at most the 5 tokens, got 6"),
        ("key_proj", {"width": 10, "heads": 3}, "heads: expected a divisor of width 10, got 3"),
    ],
)
def test_dimensions_that_cannot_be_are_named(op, given, message):
    with pytest.raises(ValueError, match=message):
        cases.build(op, given)


def test_the_floor_is_the_slowest_of_memory_arithmetic_and_a_call():
    rates = Rates({1 << 14: 8e9, 1 << 20: 4e9, 1 << 28: 1e9}, {"float32": 1e11, "bfloat16": 2e11}, 1e-6)
    assert rates.floor(1 << 28, 0, "float32") == pytest.approx((1 << 28) / 1e9)  # from memory
    assert rates.floor(1 << 20, 0, "float32") == pytest.approx((1 << 20) / 4e9)  # from a cache
    assert rates.floor(100, 0, "float32") == 1e-6
    assert rates.floor(100, 1e9, "bfloat16") == pytest.approx(5e-3)
    assert rates.floor(1 << 30, 0, "float32") == pytest.approx((1 << 30) / 1e9)  # larger than anything measured


def test_of_two_measurements_of_the_machine_the_better_counts():
    first, second = Rates({1: 1.0, 2: 5.0}, {"float32": 3.0}, 0.2), Rates({1: 2.0, 2: 4.0}, {"float32": 2.0}, 0.1)
    assert first.best_of(second) == Rates({1: 2.0, 2: 5.0}, {"float32": 3.0}, 0.1)


def test_a_gpu_is_timed_by_events_behind_a_flush(monkeypatch):
    """Stand-ins for CUDA: each call lies between two events of its own, behind a write of the scratch buffer."""
    log = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, end: "Event") -> float:
            return 2.0  # milliseconds

    class Scratch:
        def zero_(self) -> None:
            log.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    clock = sampling.CudaClock.__new__(sampling.CudaClock)
    clock.device, clock._scratch = torch.device("cuda"), Scratch()
    assert clock.seconds(lambda: log.append("call"), 2) == pytest.approx(2e-3)
    assert log == ["flush", "event", "call", "event"] * 2 + ["wait"]
