"""The rows of `vitcop eval`: what is asked for is checked before anything is loaded, and shares are of the unpruned."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vitcop import ViTCoP
from vitcop.compare import UserError
from vitcop.evaluation.settings import make_method, number
from vitcop.evaluation.study import Row, Setting, average, retained, save, score, settings_for, table


@pytest.mark.parametrize(
    ("text", "value"), [("64", 64), ("0.5", 0.5), ("1/9", 1 / 9), ("released", "released"), ("1/0", "1/0"), (3, 3)]
)
def test_numbers_and_fractions_are_read(text: Any, value: Any) -> None:
    assert number(text) == value


def test_a_method_is_made_of_its_name_and_options() -> None:
    assert make_method("vitcop", retention="1/9", semantics="released") == ViTCoP(retention=1 / 9, semantics="released")
    assert make_method("none") is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fastvv", {}, "method: expected one of none, .*vitcop.*, got 'fastvv'"),
        ("vitcop", {"retian": 64}, "retian: expected an option of vitcop"),
        ("none", {"retain": 64}, "method: expected no options beside 'none', got retain"),
    ],
)
def test_names_and_options_that_there_are_not(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(name, **options)


def test_the_unpruned_model_comes_first_and_every_method_at_every_budget() -> None:
    rows = settings_for(["vitcop"], [192, 64], [0.2], {"semantics": "released"})
    assert [row.method for row in rows] == ["none", "vitcop", "vitcop", "vitcop"]
    assert [row.group for row in rows] == ["", "retain 192 tokens", "retain 64 tokens", "retention 0.2"]
    assert rows[1].name == "vitcop semantics=released"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["vitcop"], [], [], {}), "--retain: expected at least one budget"),
        ((["vitcop"], [64], [], {"semantics": "paperr"}), "--method vitcop: semantics: expected one of"),
        ((["other"], [64], [], {}), "--method other: method: expected one of"),
    ],
)
def test_bad_settings_are_said_at_once(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_for(*arguments)


ROWS = [
    Row(Setting("none", {}), {"gqa": 0.5, "new": 0.0}, None, 576.0),
    Row(Setting("vitcop", {"retain": 64}), {"gqa": 0.45, "new": 0.1}, 63.6, 576.0),
]


def test_shares_are_of_the_unpruned_scores() -> None:
    assert retained(ROWS[1], ROWS[0]) == {"gqa": pytest.approx(0.9), "new": None}
    assert average(retained(ROWS[1], ROWS[0])) == pytest.approx(0.9)
    assert average({"new": None}) is None


def test_the_first_metric_that_is_a_number_is_the_score() -> None:
    assert (
        score("gqa", {"alias": "gqa", "exact_match,none": 0.25, "exact_match_stderr,none": "N/A", "f1,none": 0.5})
        == 0.25
    )


def test_a_task_without_a_number_is_named() -> None:
    with pytest.raises(UserError, match="--tasks: essay has no score that is a number, only alias"):
        score("essay", {"alias": "essay"})


def test_table_and_file_say_the_same(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "rows.json", ROWS, {"model": "m"})
    saved = json.loads((tmp_path / "deep" / "rows.json").read_text())
    assert saved["model"] == "m" and saved["rows"][1]["scores"] == ROWS[1].scores
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(ROWS))
    text = console.export_text()
    assert "0.450 (90.0%)" in text and "63.6" in text and "retain 64 tokens" in text and "0.100 (-)" in text
