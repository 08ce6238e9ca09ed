import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command() -> Run:
    """Run `python -m vitcop ...` in a process of its own, without a network; `env` adds to the environment."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
        return subprocess.run(
            [sys.executable, "-m", "vitcop", *map(str, arguments)],
            env=os.environ | settings | (env or {}),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Environment in which these modules cannot be imported, as in an install without the extras."""

    def environment(*modules: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("without")
        (folder / "sitecustomize.py").write_text(
            f"""
import importlib.machinery, importlib.metadata
hidden = {modules!r}
find_spec = importlib.machinery.PathFinder.find_spec
def find_other(name, path=None, target=None):
    return None if name.split(".")[0] in hidden else find_spec(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_other)  # setuptools asks an instance
version = importlib.metadata.version
def hide(name):
    if name.replace("pillow", "PIL") in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = hide
"""
        )
        paths = [str(folder), str(ROOT), str(ROOT / "python")]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    return environment


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded LLaVA as a folder in the format of the hub."""
    from vitcop import embedded

    folder = tmp_path_factory.mktemp("checkpoint") / "llava"
    embedded.build_model().save_pretrained(folder)
    embedded.build_processor().save_pretrained(folder)
    return folder
