"""The GPU checks without a GPU: a dry run checks every op once, and a wrong answer or a crash is reported."""

import subprocess
import sys
from pathlib import Path

from verification.gpu import processes

ROOT = Path(__file__).parents[2]


def test_dry_run_checks_every_op() -> None:
    command = [sys.executable, "-m", "verification.gpu", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=processes.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"failed": 0' in done.stdout


def test_a_crash_is_blamed_on_the_item_that_was_begun() -> None:
    program = """
import os, sys
for item in ("a", "b", "c"):
    if item not in sys.argv:
        print("begin", item, flush=True)
        os._exit(9) if item == "b" else print("ok", item, flush=True)
"""
    records = processes.run([sys.executable, "-c", program], 60.0)
    found = {record["item"]: record["status"] for record in records}
    assert found == {"a": "passed", "b": "failed", "c": "passed"}
