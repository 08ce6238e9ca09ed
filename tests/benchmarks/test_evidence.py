"""docs/evidence.md says what the committed results say, of every topic that there is."""

import pkgutil
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.evidence import record
from benchmarks.evidence.__main__ import PAGE, TOPICS, page
from benchmarks.evidence.record import load, path_of

HELPERS = {"__main__", "record", "native_build"}


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == page()


def test_every_topic_has_a_part() -> None:
    assert {module.name for module in pkgutil.iter_modules(evidence.__path__)} - HELPERS == set(TOPICS)


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if path_of(topic).exists()])
def test_every_result_names_its_command_commit_and_machine(topic: str) -> None:
    found = load(topic)
    assert found["topic"] == topic == path_of(topic).stem
    assert f"benchmarks.evidence.{topic}" in found["command"] or "make " in found["command"]
    assert found["commit"] != "unknown" and found["machine"]["processor"]


def test_what_has_not_been_run_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    assert page().count("Not yet run at full size: `python -m benchmarks.evidence.") == len(TOPICS)
