"""`vitcop doctor`: always answers, in a bare install too."""

import json
import re
import tomllib
from pathlib import Path

import pytest

import vitcop_kernels
from vitcop import doctor

NAMES = {
    "Python", "vitcop", "torch", "C++ kernels (CPU)", "CUDA", "Triton", "flash-attn", "transformers", "pillow", "typer",
    "rich", "matplotlib",
}  # fmt: skip


def test_every_part_has_a_state_and_a_reason():
    results = doctor.checks()
    assert {check.name for check in results} == NAMES
    assert all(check.state in ("ok", "off", "missing") and check.detail for check in results)


def test_range_of_transformers_is_that_of_the_package():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    requirement = next(r for r in pyproject["project"]["optional-dependencies"]["hf"] if r.startswith("transformers"))
    assert tuple(re.findall(r"[\d.]+", requirement)) == doctor.TRANSFORMERS_RANGE


@pytest.mark.parametrize(
    ("version", "state"), [("4.56.2", "off"), ("4.57.0", "ok"), ("5.23.0", "ok"), ("6.0.0", "off"), (None, "missing")]
)
def test_transformers_out_of_range_is_told(monkeypatch, version, state):
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    check = doctor._transformers()
    assert check.state == state
    assert "4.57 or later, below 6" in check.detail


def test_native_kernels_are_told_with_compiler_and_instruction_set(monkeypatch):
    if vitcop_kernels.native_error is not None:
        pytest.skip(vitcop_kernels.native_error)
    check = doctor._native()
    assert check.state == "ok"
    assert "built with" in check.detail
    assert "portable" in check.detail
    assert "using" in check.detail


def test_without_native_kernels_the_reason_is_told(command):
    done = command("doctor", "--json", env={"VITCOP_NATIVE": "0"})
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["C++ kernels (CPU)"]["state"] == "off"
    assert "switched off by VITCOP_NATIVE=0" in checks["C++ kernels (CPU)"]["detail"]


def test_table(command):
    pytest.importorskip("typer")
    done = command("doctor")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in NAMES)


def test_bare_install_answers_in_plain_text_and_json(command, without):
    env = without("typer", "rich", "matplotlib", "transformers", "PIL")
    done = command("doctor", env=env)
    assert done.returncode == 0, done.stderr
    lines = {line[:17].strip(): line[19:26].strip() for line in done.stdout.splitlines()}
    assert set(lines) == NAMES
    assert all(lines[name] == "missing" for name in ("typer", "rich", "matplotlib", "transformers", "pillow"))
    assert "pip install 'vitcop[hf]'" in done.stdout
    assert "pip install 'vitcop[cli]'" in done.stdout
    done = command("doctor", "--json", env=env)
    assert {check["name"] for check in json.loads(done.stdout)["checks"]} == NAMES


def test_other_commands_of_a_bare_install_say_what_to_install(command, without):
    done = command("run", env=without("typer", "rich"))
    assert (done.returncode, done.stderr) == (
        2,
        "vitcop: `vitcop run` needs typer and rich: pip install 'vitcop[cli]'\n",
    )


def test_run_without_matplotlib_says_what_to_install(command, without):
    pytest.importorskip("typer")
    done = command("run", env=without("matplotlib"))
    assert (done.returncode, done.stderr) == (2, "vitcop: `vitcop run` needs matplotlib: pip install 'vitcop[cli]'\n")
