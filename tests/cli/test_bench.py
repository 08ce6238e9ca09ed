"""`vitcop bench`: a user's own shapes, the file it writes, and what it says about arguments that cannot be."""

import json

import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from vitcop.commands import app

QUICK = ("--no-compile", "--rounds", 5, "--seconds", 0, "--threads", 1)


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    from vitcop_kernels.bench import floor

    monkeypatch.setattr("vitcop.bench.measure_rates", lambda device, dtypes: floor.measure_rates(device, dtypes, True))


def bench(*arguments: object):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "160"})


def test_own_shapes_in_a_table_and_a_file(tmp_path):
    path = tmp_path / "new" / "result.json"
    done = bench("vic_cluster", "--tokens", 30, "--width", 16, "--batch", 2, *QUICK, "--save", path)
    assert done.exit_code == 0, done.output
    assert "vic_cluster  batch=2 tokens=30 width=16 clusters=5  float32 on cpu" in done.output
    assert all(name in done.output for name in ("vitcop", "reference", "floor", "95 % CI", "p20-p80"))
    found = json.loads(path.read_text())
    assert {"schema", "date", "commit", "machine", "versions", "rates", "rows"} <= set(found)
    (row,) = found["rows"]
    assert row["dims"] == {"batch": 2, "tokens": 30, "width": 16, "clusters": 5}
    assert len(row["ways"]["vitcop"]["samples_s"]) == 5
    assert row["ratios"]["reference"]["low"] <= row["ratios"]["reference"]["median"]


def test_dtype_goes_into_the_inputs():
    done = bench("select_tokens", "--tokens", 30, "--keep", 4, "--dtype", "bfloat16", *QUICK)
    assert done.exit_code == 0, done.output
    assert "batch=1 tokens=30 keep=4  bfloat16 on cpu" in done.output


def test_a_wrong_answer_ends_with_code_1_and_no_times(monkeypatch):
    from vitcop_kernels.testing.op import Case

    monkeypatch.setattr(Case, "run", lambda self: self.reference().flip(-1))
    done = bench("select_tokens", "--tokens", 30, "--keep", 4, *QUICK)
    assert done.exit_code == 1
    assert "refused" in done.output and "instead of" in done.output
    assert "reference" not in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cluster",), "op: expected one of attention_saliency, compact_sequence, "),
        (("--tokens", 5, "--head-dim", 3), "--tokens, --head-dim: expected with the name of an op, got it without one"),
        (("vic_cluster", "--heads", 3), "--heads: vic_cluster has no such dimension; expected some of batch, tokens, "),
        (("key_norms", "--head-dim", 0), "--head-dim: expected at least 1, got 0"),
        (("vic_cluster", "--tokens", 5, "--clusters", 6), "--clusters: expected at most the 5 tokens, got 6"),
        (("vic_cluster", "--device", "abacus"), "--device: abacus cannot be used here ("),
        (("select_tokens", "--tokens", 9, *QUICK, "--save", "file/x.json"), "--save: cannot write file/x.json ("),
    ],
)
def test_argument_that_cannot_be_used(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    done = bench(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"vitcop: {sentence}")
    assert len(done.stderr.splitlines()) == 1
