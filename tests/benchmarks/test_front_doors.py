"""The benchmarks' commands run, at toy sizes: numbers of a dry run mean nothing, and say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_gpu_report_dry_run(tmp_path: Path) -> None:
    done = run(
        "benchmarks.gpu", "--dry-run", "--models", "tiny LLaVA-NeXT-Video", "--only", "models", "--out", str(tmp_path)
    )
    assert done.stdout.startswith("DRY RUN")
    (path,) = tmp_path.glob("DRY-RUN-*.json")
    found = json.loads(path.read_text())
    assert found["dry_run"] and not found["errors"] and found["aborted"] is None
    assert {record["status"] for record in found["ops"]} == {"measured"}
    runs = {run["way"]: run["status"] for run in found["models"][0]["runs"]}
    assert runs["vitcop"] == runs["unpruned"] == "measured"
    assert all(row["met"] is None for row in found["targets"])


def test_ops_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "found.json"
    chosen = ["-k", "select_tokens and not memory", f"--benchmark-json={path}"]
    run("pytest", "benchmarks", "--benchmark-only", "--quick", "-q", "-p", "no:cacheprovider", *chosen)
    found = {one["name"]: one for one in json.loads(path.read_text())["benchmarks"]}
    ours = next(one for name, one in found.items() if name.endswith("-vitcop]"))
    assert ours["extra_info"]["over_roofline"] > 0 and "data" not in ours["stats"]
    assert any("ratio" in one["extra_info"] for one in found.values())


def test_compare_with_the_same_revision() -> None:
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, check=False)
    if git.returncode:
        pytest.skip("not a git checkout")
    run("benchmarks.compare", "HEAD", "--ops", "select_tokens", "--rounds", "3", "--processes", "1", "--limit", "9")
