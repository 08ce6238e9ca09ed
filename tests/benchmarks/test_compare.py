"""Comparing revisions: a tree with itself, with a planted slowdown, with a wrong answer, and one from git."""

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import compare
from vitcop_kernels.bench import cases

ROOT = Path(__file__).parents[2]
# Between noise at these tiny settings on a busy machine and a planted factor of 2.
LIMIT = 1.4


@pytest.fixture
def tree(tmp_path):
    """A copy of the kernels, with more Python at the end of their package."""

    def make(more: str) -> Path:
        shutil.copytree(ROOT / "vitcop_kernels", tmp_path / "vitcop_kernels", ignore=shutil.ignore_patterns("__pyc*"))
        with (tmp_path / "vitcop_kernels" / "__init__.py").open("a") as file:
            file.write(more)
        return tmp_path

    return make


def rows(base: Path, head: Path, op: str = "key_norms"):
    todo = [cases.build(op, {"tokens": 400} if op == "key_norms" else {"tokens": 64, "keep": 8})]
    return compare.compare(base, head, todo, limit=LIMIT, rounds=9, processes=2, threads=1)


TWICE = """
import torch
_once = torch.ops.vitcop.key_norms
def _twice(*args, **kwargs):
    _once(*args, **kwargs)
    return _once(*args, **kwargs)
torch.ops.vitcop.key_norms = _twice
"""


def test_a_planted_slowdown_is_a_regression_and_the_same_tree_is_none(tree):
    slow = tree(TWICE)
    (row,) = rows(ROOT, slow)
    assert row["verdict"] == "slower"
    assert row["ratio"]["low"] > LIMIT
    assert row["first"]["verdict"] == "slower"  # measured twice
    assert compare.failed([row])
    (row,) = rows(ROOT, ROOT)
    assert row["verdict"] in ("same", "faster")
    assert not compare.failed([row])
    assert [len(group) for group in row["seconds"]["head"]] == [9, 9]


def test_a_wrong_answer_fails_without_times(tree):
    head = tree("import torch\ntorch.ops.vitcop.select_tokens = lambda scores, k: torch.zeros(1, k, dtype=torch.int64)")
    (row,) = rows(ROOT, head, "select_tokens")
    assert row["verdict"] == "wrong" and "values differ" in row["why"]
    assert row["seconds"] == {"base": [], "head": []}
    assert compare.failed([row])


def test_an_op_that_the_base_does_not_have_is_named_and_fails_nothing(tree):
    base = tree("import torch\ndef _no(*a, **k): raise NotImplementedError('no such op')\n"
                "torch.ops.vitcop.select_tokens = _no")  # fmt: skip
    (row,) = rows(base, ROOT, "select_tokens")
    assert (row["verdict"], row["why"]) == ("not compared", "base: NotImplementedError: no such op")
    assert not compare.failed([row])


def test_a_process_that_ends_is_told():
    worker = compare.Worker(ROOT)
    worker.process.kill()
    with pytest.raises(compare.Failed, match="the process ended with code"):
        worker.ask("time", calls=1)
    worker.close()


@pytest.mark.parametrize(
    ("low", "high", "want"), [(1.04, 1.2, "slower"), (1.02, 1.2, "same"), (0.8, 0.9, "faster"), (0.9, 0.99, "same")]
)
def test_only_a_whole_interval_is_a_verdict(low, high, want):
    assert compare.verdict(low, high, 1.03) == want


def test_a_revision_is_checked_out_built_and_removed():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git repository")
    if not list((ROOT / "vitcop_kernels").glob("_C.*")):
        pytest.skip("the native module is not built")
    with compare.checkout("HEAD") as root:
        assert (root / "vitcop_kernels" / "__init__.py").exists()
        worker = compare.Worker(root)
        worker.close()
        assert worker.native_error is None
    assert not root.exists()
    assert str(root) not in compare._git("worktree", "list")


def test_an_unknown_revision_is_one_sentence():
    if not (ROOT / ".git").exists():
        pytest.skip("not in a git repository")
    with pytest.raises(SystemExit, match=r"compare: git worktree add --detach .* no-such-revision"):
        compare.checkout("no-such-revision").__enter__()


def test_default_cases_hold_every_op():
    torch.manual_seed(0)
    assert {case.op for case in compare.default_cases(None)} == set(cases.SPECS)
    assert {case.op for case in compare.default_cases(["segment_mean"])} == {"segment_mean"}
