"""What the pages say follows from results: slopes, crossings, verdicts, peers, and their tables and figures."""

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import peers, ratios
from benchmarks.evidence.crossover import document as crossover
from benchmarks.evidence.scale import check
from benchmarks.evidence.scale import document as scale
from benchmarks.evidence.speed import document as speed
from benchmarks.evidence.speed.rows import REAL, measured, tiny
from benchmarks.memory import NotMeasured, peak_mb
from vitcop_kernels.bench import cases
from vitcop_kernels.bench.measure import WrongAnswer, measure

ROOT = Path(__file__).parents[2]
ORIGIN = {
    "command": "python -m some.command", "commit": "abc", "date": "2026-01-02T03:04:05",
    "machine": {"processor": "a CPU", "logical_cpus": 2, "threads": 2, "torch": "2", "python": "3"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than one alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_slope_of_known_points():
    fit = scale.slope(
        [64, 128, 256, 512, 1024], [9.0, 1e-6 * 128**2, 1e-6 * 256**2, 1e-6 * 512**2, 1e-6 * 1024**2], 100
    )
    assert fit.slope == pytest.approx(2.0)
    assert fit.error == pytest.approx(0.0, abs=1e-9)
    assert (fit.first, fit.last) == (128, 1024)
    assert scale.slope([64, 128, 256], [1.0, 2.0, 3.0], 100) is None
    assert scale.slope([1, 2, 4, 8], [1.0, 2.2, 3.8, 8.1], 1).error > 0.01


def test_where_a_line_crosses_one():
    assert crossover.crossings([1, 4], [2.0, 0.5]) == pytest.approx([4 ** (2 / 3)])  # two thirds of the way, in log x
    assert crossover.crossings([1, 2, 4], [0.5, 0.9, 0.8]) == []
    assert len(crossover.crossings([1, 2, 4], [0.5, 1.5, 0.8])) == 2


def _ratio(low: float, median: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


def _crossover() -> dict:
    seconds = {name: {"prefill": [0.2], "decode": [0.02]} for name in ("unpruned", "vitcop")}
    points = [
        {"x": x, "at": {"visual": x}, "kept": [x // 4, x // 9, 1], "seconds": seconds, "prefill": found,
         "decode": _ratio(1.1, 1.2, 1.3)}
        for x, found in ((16, _ratio(1.2, 1.3, 1.4)), (64, _ratio(0.9, 1.05, 1.2)), (576, _ratio(0.4, 0.5, 0.6)))
    ]  # fmt: skip
    points.append({"x": 1, "at": {"visual": 1}, "not_run": "retention: too few tokens"})
    base = {"layers": 12, "width": 512, "side": 24}
    sweeps = [{"axis": "visual tokens", "points": points}, {"axis": "batch", "points": points[:1]}]
    return {"retention": 1 / 9, "decoded": 8, "base": base, "sweeps": sweeps, **ORIGIN}


def test_pruning_pays_only_where_the_whole_interval_says_so():
    (sweep, _) = _crossover()["sweeps"]
    said = crossover.sentence(sweep, "prefill")
    assert said.startswith(
        "prefill, visual tokens: pays at 576; does not pay at 16; undecided at 64; the medians cross"
    )
    assert crossover.sentence(sweep, "decode") == "decode, visual tokens: does not pay at 16, 64, 576."


def test_the_crossover_has_a_section_and_a_figure(tmp_path):
    text = crossover.section(_crossover())
    assert text.startswith("## ") and text.endswith("Python 3.\n")
    assert (
        "| visual tokens | 576 | 576 -> 144 -> 64 -> 1 | 200 ms | 0.50 | 0.40-0.60 | 20 ms | 1.20 | 1.10-1.30 |" in text
    )
    assert "not run: retention: too few tokens" in text
    crossover.draw(_crossover(), tmp_path / "new" / "x.png")
    assert (tmp_path / "new" / "x.png").stat().st_size > 10_000


def _scale() -> dict:
    def points(power: int) -> list[dict]:
        return [{"x": x, "ways": {"vitcop": {"median_s": 1e-7 * x**power}, "cdist": {"not_run": "too large"}}}
                for x in (512, 1024, 2048, 4096)]  # fmt: skip

    sweeps = [{"axis": "tokens", "op": "vic_cluster", "fixed": {}, "points": points(2)},
              {"axis": "tokens", "op": "segment_mean", "fixed": {}, "points": points(1)},
              {"axis": "batch", "op": "vic_cluster", "fixed": {}, "points": points(1)}]  # fmt: skip
    memory = [{"x": x, "ways": {"vitcop": {"mb": x / 512}}} for x in (512, 1024, 2048, 4096)]
    halves = [{"x": x, "ways": {"vitcop": {"median_s": 0.2 / x}}} for x in (1, 2)]
    threads = [{"axis": "threads", "op": "vic_cluster", "fixed": {"tokens": 576}, "points": halves}]
    return {"sweeps": sweeps, "memory": memory, "threads": threads, **ORIGIN}


def test_the_scale_has_a_section_with_slopes_and_their_ranges_and_a_figure(tmp_path):
    text = scale.section(_scale())
    assert text.startswith("## ") and text.endswith("Python 3.\n")
    assert "| time over tokens | `vic_cluster` | vitcop | 2.00 | 0.00 | 1024 | 4096 |" in text
    assert "| peak memory over tokens | `vic_cluster` | vitcop | 1.00 | 0.00 | 512 | 4096 |" in text
    assert "Not run: cdist: too large." in text
    assert "| `vic_cluster` | 576 | 1: 200 ms (1.00 x), 2: 100 ms (2.00 x) |" in text
    scale.draw(_scale(), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_speed_runs_every_op_once_and_renders(tmp_path):
    torch.set_num_threads(1)
    found = measured(tiny(), compiled=False, seconds=0.0, device=torch.device("cpu"), quick=True) | ORIGIN
    assert {row["op"] for row in found["rows"]} == set(cases.SPECS)
    assert not [row["refused"] for row in found["rows"] if "refused" in row]
    found = json.loads(json.dumps(found))
    text = speed.section(found)
    assert text.startswith("## ") and text.endswith("Python 3.\n")
    (line,) = [line for line in text.splitlines() if line.startswith("| `vic_cluster` |") and line.count("|") == 11]
    assert all(cell.strip() for k, cell in enumerate(line.split("|")[1:-1]) if k != 6)  # 6: compiled
    assert f"- flash-kmeans: {peers.absent(cases.build('vic_cluster'))['flash-kmeans']}" in text
    speed.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_refused_row_is_told_and_has_no_times():
    row = {"op": "key_norms", "dims": {"tokens": 3}, "dtype": "float32", "device": "cpu", "refused": "it is wrong",
           "ways": {}, "ratios": {}}  # fmt: skip
    text = speed.section({"rows": [row], **ORIGIN})
    assert "- `key_norms` tokens=3 float32: it is wrong" in text


def test_real_shapes_hold_every_op():
    assert {op for op, _, _ in REAL} == set(cases.SPECS)
    assert all(cases.dims_of(op, dims) for op, dims, _ in REAL)


# ---------------------------------------------------------------------------------------------------------------- peers
@pytest.mark.parametrize(
    ("op", "dims"),
    [
        ("vic_cluster", {"tokens": 40, "width": 32}),
        ("vic_cluster", {"tokens": 40, "width": 32, "batch": 2}),
        ("segment_mean", {"tokens": 40, "width": 32, "budget": 25}),
        ("attention_saliency", {"tokens": 40}),
        ("key_proj_norms", {"tokens": 10, "width": 64, "heads": 2}),
        ("key_proj", {"tokens": 10, "width": 64, "heads": 2}),
        ("select_tokens", {"tokens": 40}),
        ("key_norms", {"tokens": 40}),
    ],
)
def test_peers_are_timed_or_named_with_a_reason(op, dims):
    """None fails, none is dropped in silence: each has a time, or one of the reasons known beforehand."""
    case = cases.build(op, dims)
    others, absent = peers.others(case), peers.absent(case)
    assert set(others) | set(absent) <= {*peers.SAME_ANSWERS, *peers.OTHER_ANSWERS}
    assert not set(others) & set(absent)
    row = measure(case, compiled=False, reference=False, others=others, skipped=absent, rounds=5, seconds=0.0)
    assert {name for name, way in row["ways"].items() if "not_run" in way} == set(absent)
    if op == "vic_cluster" and case.dims["batch"] == 1:
        everything = {peers.AUTHORS, peers.EAGER, "pydpc", "sklearn KMeans", "sklearn MiniBatchKMeans", "flash-kmeans"}
        assert set(row["ways"]) == {"vitcop", *everything}
    if op == "segment_mean":
        assert set(row["ways"]) == {"vitcop", "index_add", "scatter_reduce", "segment_reduce", "ToMe matching"}


def test_absent_packages_say_so(monkeypatch):
    monkeypatch.setattr(peers, "_installed", lambda module: False)
    case = cases.build("vic_cluster", {"tokens": 30, "width": 8})
    assert set(peers.absent(case)) == {"pydpc", "sklearn KMeans", "sklearn MiniBatchKMeans", "flash-kmeans"}
    assert all("not installed" in reason for reason in peers.absent(case).values())
    assert set(peers.others(case)) == {peers.AUTHORS, peers.EAGER}


@pytest.mark.parametrize(
    ("dims", "reason"),
    [({"tokens": 2048, "width": 16}, "loops over tokens"), ({"tokens": 800, "width": 4096}, "N x N x D differences")],
)
def test_the_authors_algorithm_is_left_out_where_it_would_take_too_much(dims, reason):
    case = cases.build("vic_cluster", dims)
    assert reason in peers.absent(case)[peers.AUTHORS]
    assert peers.AUTHORS not in peers.others(case)


def test_a_peer_with_another_answer_is_refused():
    case = cases.build("vic_cluster", {"tokens": 40, "width": 32})
    with pytest.raises(AssertionError, match="of the labels are right"):
        peers.same_labels(case)(case.run()[0].roll(1, -1))


def test_tome_merges_the_most_similar_pairs():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.9, 0.1], [3.0, 0.2], [-1.0, 0.3], [0.0, 1.0]])
    # Sources 0, 2, 4; targets 1, 3, 5. 0 and 2 are nearest to 3 in angle, 4 to 1 or 5.
    found = peers.tome_matching(x, 2)
    assert found.shape == (4, 2)
    torch.testing.assert_close(found, torch.stack([x[4], x[1], (x[0] + x[2] + x[3]) / 3, x[5]]))
    assert torch.equal(peers.tome_matching(x, 0), torch.cat([x[::2], x[1::2]]))


# -------------------------------------------------------------------------------------- large answers, memory, targets
def test_a_large_clustering_is_certified_token_by_token(monkeypatch):
    monkeypatch.setattr(check, "WHOLE", 100)
    case = cases.build("vic_cluster", {"tokens": 300, "width": 64})
    labels, centers, parent, rho, delta = case.run()
    check.checked(case)
    x, dense, thin = case.args[0][0], int(rho[0].argmax()), int(rho[0].argmin())
    looked_at = torch.linspace(0, 299, check.TOKENS).long().tolist()
    i = next(k for k in looked_at if k not in (dense, thin) and parent[0, k] != dense and delta[0, k].isfinite())

    def with_parent(p: int) -> tuple[torch.Tensor, ...]:
        other, far = parent.clone(), delta.clone()
        other[0, i], far[0, i] = p, torch.linalg.vector_norm(x[i] - x[p])
        return labels, centers, other, rho, far

    spoilt = {
        "rho is not the density": (labels, centers, parent, rho * 1.01, delta),
        "delta is not d": (labels, centers, parent, rho, delta * 1.001),
        "a centre has not its own label": (labels.roll(1, -1), centers, parent, rho, delta),
        f"token {i}: its parent is less dense": with_parent(thin),
        f"token {i}: (a nearer denser token was passed over|its parent is beyond tau)": with_parent(dense),
    }
    for what, answer in spoilt.items():
        monkeypatch.setattr(type(case), "run", lambda self, answer=answer: answer)
        with pytest.raises(WrongAnswer, match=what):
            check.checked(case)


def test_peak_memory_of_a_call_is_that_of_its_largest_tensors():
    """The authors' differences of 160 x 160 x 256 float32 are 25 MB each."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell peak memory")
    wide = {"tokens": 160, "width": 256}
    assert 20 < peak_mb("vic_cluster", wide, way="as written", threads=1) < 120
    assert peak_mb("vic_cluster", wide, threads=1) < 10


def test_memory_that_cannot_be_measured_says_why():
    with pytest.raises(NotMeasured, match="heads: vic_cluster has no such dimension"):
        peak_mb("vic_cluster", {"heads": 2})


@pytest.mark.parametrize(
    ("ratio", "low", "target", "want"),
    [(0.9, 0.8, 1.0, "met"), (1.1, 0.9, 1.0, "unsure"), (1.1, 1.05, 1.0, "missed"), (1.1, 1.0, None, "")],
)
def test_verdicts_of_targets(ratio, low, target, want):
    assert ratios.verdict(ratio, low, target) == want


def test_the_job_of_the_targets_reports_a_miss_and_succeeds(monkeypatch, capsys):
    """A target of 0.0 is missed by anything."""
    (row, *_) = [r for r in ratios.registry.others() if r.op == "select_tokens"]
    row = dataclasses.replace(row, targets={"best eager": 0.0})
    monkeypatch.setattr(ratios.registry, "rows", lambda compiled: [row])
    monkeypatch.setattr(sys, "argv", ["ratios", "--rounds", "0.3", "--no-memory", "--no-save"])
    ratios.main()
    assert "targets: 0 met, 0 unsure, 1 missed" in capsys.readouterr().out


@pytest.mark.parametrize("topic", ["speed", "scale", "crossover"])
def test_every_topic_explains_itself(topic):
    assert callable(importlib.import_module(f"benchmarks.evidence.{topic}").section)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.evidence.{topic}", "--help"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.evidence.{topic}" in done.stdout
