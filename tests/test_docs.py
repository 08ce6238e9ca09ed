"""The Python examples in the documentation run and print what their comments say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitcop_kernels

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "ops").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_op_example_prints_what_its_comment_says(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(page), "exec"), {})
    expected = [line.split(")  # ", 1)[1] for line in code.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == expected and expected


def test_every_op_has_a_page() -> None:
    ops = {name for name in vitcop_kernels.ops.__all__ if name != "num_centers_for"}
    assert {page.stem for page in PAGES} == {*ops, "index"}


def test_quick_start_prints_what_the_readme_shows() -> None:
    pytest.importorskip("transformers")
    root = DOCS.parent
    script, output = (root / "examples" / name for name in ("quickstart.py", "quickstart.txt"))
    paths = [str(root), str(root / "python"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == output.read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert f"```python\n{script.read_text(encoding='utf-8')}```\n\n```\n{done.stdout}```\n" in readme
