"""The kernels compile without spills for every GPU, with the instructions they claim, as the committed table says.

Compiling needs a process without Triton's interpreter: one runs for all tests of this file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.6", "3.9")
HOW = "run `python -m verification.aot` with Triton {}"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "verification.aot.live"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_has_every_configuration_of_today_without_spills_and_with_its_claims(
    found: dict[str, Any], version: str
) -> None:
    assert found["problems"][version] == [], HOW.format(version)


def test_what_the_launchers_ask_for_is_compiled_and_a_missing_configuration_is_reported() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "verification.aot.dispatch"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    dispatch = json.loads(run.stdout)
    assert dispatch["asked"] > 100 and dispatch["missing"] == []
    assert any(what.startswith("statistics_kernel: p_query=bf16, HAS_MASK=False") for what in dispatch["planted"])
    assert dispatch["stranger"] == ["stranger_kernel: not in verification/aot/dispatch.py"]


def test_the_page_shows_the_committed_results(found: dict[str, Any]) -> None:
    assert found["page"], HOW.format(found["version"])


def test_the_results_are_of_the_versions_they_say_and_hold_all_architectures() -> None:
    for version in VERSIONS:
        result = json.loads((ROOT / "verification" / "results" / "aot" / f"triton-{version}.json").read_text())
        assert result["about"]["triton"].startswith(f"{version}.")
        seen = {target for entry in result["entries"].values() for target in entry["rows"]}
        assert seen == {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"}


def test_compiled_now_one_of_every_module_spills_nothing_and_keeps_its_claims(found: dict[str, Any]) -> None:
    for start, chosen in found["live"].items():
        assert chosen, f"no configuration is called {start}..."
        for name, targets in chosen.items():
            for target, now in targets.items():
                assert now["wrong"] == [], name
                if found["version"] in VERSIONS:
                    assert now["row"] == now["committed"], f"{name} on {target}: " + HOW.format(found["version"])
    assert {target for chosen in found["live"].values() for each in chosen.values() for target in each} == {
        "sm_90",
        "gfx942",
    }


def test_a_spill_a_wrong_claim_and_too_much_shared_memory_are_reported(found: dict[str, Any]) -> None:
    planted = found["planted"]
    assert len(planted["spill"]) == 1 and "on sm_90: spills" in planted["spill"][0]
    claims = [what.split("]")[1] for what in planted["claim"]]
    assert sorted(claims) == [
        f" on {target}: claims {instruction}, has no tensor-core instruction"
        for target, instruction in (("gfx942", "mfma"), ("sm_90", "wgmma"))
    ]
    assert len(planted["shared memory"]) == 1 and "bytes of shared memory" in planted["shared memory"][0]


def test_a_table_that_is_not_of_the_current_kernels_is_reported(found: dict[str, Any]) -> None:
    planted = found["planted"]
    assert planted["right"] == []
    everywhere = "missing or stale on sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, gfx942, gfx950"
    assert [planted[name][0].split(": ")[1] for name in ("stale", "other code", "missing", "none")] == [
        everywhere,
        everywhere,
        "missing or stale on sm_86",
        "no such configuration",
    ]
    assert planted["where it cannot be"][0].endswith("cannot choose it on sm_100, sm_120, sm_80, sm_86, sm_89, sm_90")


def test_architectures_that_share_a_ptx_get_the_same_from_triton(found: dict[str, Any]) -> None:
    assert len(found["siblings"]) == 2
    assert all(found["siblings"].values()), found["siblings"]


SOURCE = '''
import triton
import triton.language as tl

STEP = tl.constexpr({step})

@triton.jit
def helper(x):
    """{docstring}"""
    return x {operator} STEP  # {comment}

@triton.jit
def kernel(p_x, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_x + o, helper(tl.load(p_x + o)))
'''


def test_the_digest_of_a_kernel_sees_its_helpers_and_constants_but_no_comment(tmp_path: Path) -> None:
    plain = {"step": 1, "operator": "+", "docstring": "a", "comment": "b"}
    changes = [{}, {"docstring": "c"}, {"comment": "d"}, {"step": 2}, {"operator": "-"}]
    for k, change in enumerate(changes):
        (tmp_path / f"case{k}").mkdir()
        (tmp_path / f"case{k}" / "planted.py").write_text(SOURCE.format(**{**plain, **change}))
    script = """
import importlib, sys
from verification.aot.specs import source_digest
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    sys.modules.pop("planted", None)
    importlib.invalidate_caches()
    print(source_digest(importlib.import_module("planted").kernel))
    sys.path.pop(0)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folders = [str(tmp_path / f"case{k}") for k in range(len(changes))]
    run = subprocess.run(
        [sys.executable, "-c", script, *folders], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    first, *others = run.stdout.split()
    assert [digest == first for digest in others] == [True, True, False, False]
