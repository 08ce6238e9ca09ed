"""The committed table of features is what the marks of the tests say."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

from benchmarks import features


def test_the_committed_table_matches_the_marks():
    command = [sys.executable, "-m", "benchmarks.features", "--check"]
    done = subprocess.run(command, cwd=features.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_table_as_markdown():
    text = features.markdown(json.loads(features.TABLE.read_text()))
    assert "| greedy | tested |" in text
    assert "| static cache | refused |" in text


def test_unknown_names_are_refused():
    collector = features.Collector()
    with pytest.raises(pytest.UsageError, match="expected one of"):
        collector._read("a test", "telepathy")
    with pytest.raises(pytest.UsageError, match="expected one of"):
        collector._read("a test", "greedy", "hoped for")
