"""Which versions work together: builds and smoke-tests vitcop in one throw-away environment after the other.

`python -m benchmarks.evidence.matrix` needs the Pythons named in `GROUPS` (on PATH, or from pyenv), a package index,
and disk for one CUDA build of torch at a time (7 GB); no GPU. `--only 3.12` runs some groups again, and leaves the rows
of others as they are.
"""

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import commit

from . import record

ROOT = Path(__file__).parents[2]
WORK = ROOT / "out" / "matrix"
COMMAND = "python -m benchmarks.evidence.matrix"

GROUPS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("3.11", "2.13.0"): [("4.57.*", "3.6.*"), ("5.*", "3.*")],
    ("3.11", "2.9.1"): [("4.57.*", "3.6.*")],
    ("3.12", "2.11.0"): [("4.57.*", "3.6.*"), ("5.17.*", "3.6.*"), ("5.*", "3.*")],
    ("3.13", "2.9.1"): [("4.57.*", "3.6.*"), ("5.*", "3.*")],
    ("3.13", "2.15.0"): [("4.57.*", "3.6.*"), ("5.*", "3.*")],
}
"""(Python, torch) -> pairs of transformers and Triton, the oldest and the newest that are supported among them."""

SUITES = {
    "ops": [
        "tests/properties/test_operators.py", "tests/properties/test_dynamic_shapes.py", "tests/ops/test_golden.py",
    ],
    "adapters": [
        "tests/adapters/test_generate.py", "tests/adapters/test_restore.py", "-k",
        "llava and not next and not onevision",
    ],
    "kernels": ["tests/kernels/test_select_tokens.py", "tests/kernels/test_key_norms.py"],
}  # fmt: skip
"""A minute or two of tests: ops through the dispatcher, compiled, exported; LLaVA; kernels in Triton's interpreter."""

BUILD_TOOLS = ["numpy", "setuptools>=77", "cmake>=3.24", "ninja", "pybind11>=2.12"]
TEST_TOOLS = ["pytest", "hypothesis", "pillow"]
NUMPY = {"3.6.*": "numpy<2.4"}
"""By Triton: the interpreter of 3.6 makes an int of an array with one element, which NumPy refuses from 2.4 on."""
TIMEOUT = 1800
SHOWN = 10  # names of failed tests in the result file
COLUMNS = ("python", "torch", "transformers", "triton", "numpy", "native")


@dataclass(frozen=True)
class Failed(Exception):
    """A step that did not work, and the last thing it said."""

    step: str
    said: str


class Environment:
    """A virtual environment with a copy of the sources; everything that is run in it goes into one log."""

    def __init__(self, python: str, torch: str) -> None:
        self.folder = WORK / f"python{python}-torch{torch}"
        self.sources, self.python = self.folder / "vitcop", self.folder / "venv" / "bin" / "python"
        self.log = WORK / f"{self.folder.name}.log"

    def run(self, step: str, *command: str | Path, timeout: int = TIMEOUT) -> str:
        """Output of a command that succeeds. Raises Failed."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env = clean | {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        where = self.sources if self.sources.exists() else WORK
        try:
            done = subprocess.run(command, cwd=where, env=env, text=True, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(step, f"not done after {timeout} s") from None
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}\n")
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise Failed(step, lines[-1].strip() if lines else f"exit code {done.returncode}")
        return done.stdout

    def pip(self, step: str, *arguments: str | Path) -> None:
        self.run(step, self.python, "-m", "pip", "install", "--progress-bar=off", *arguments)

    def build(self, base: Path, torch: str) -> None:
        """The environment with torch, and vitcop from a copy of the working tree, native where it can be."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.run("venv", base, "-m", "venv", self.folder / "venv")
        self.pip("torch", f"torch=={torch}", *BUILD_TOOLS)
        self.copy_sources()
        self.pip("vitcop", "--no-build-isolation", "--no-deps", "-e", self.sources)

    def copy_sources(self) -> None:
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                target = self.sources / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)

    def versions(self) -> dict[str, str]:
        """What is really installed, and whether the native kernels are there."""
        lines = [
            "import platform, numpy, torch, transformers, triton, vitcop_kernels as kernels",
            "modules = torch, transformers, triton, numpy",
            "native = 'no' if kernels.native_error else 'yes'",
            "print(platform.python_version(), *(module.__version__ for module in modules), native)",
        ]
        said = self.run("import", self.python, "-c", "\n".join(lines)).split()
        return dict(zip(COLUMNS, said, strict=True))

    def test(self, suite: str) -> dict[str, Any]:
        """Counts of a suite, and the names of what failed."""
        report = self.folder / f"{suite}.xml"
        report.unlink(missing_ok=True)
        flags = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        said = ""
        try:
            self.run(suite, self.python, "-m", "pytest", *flags, *SUITES[suite])
        except Failed as error:
            said = error.said
        return counts(report, said)


def counts(report: Path, said: str) -> dict[str, Any]:
    """passed, failed and skipped of a JUnit file; `said`: why there may be none."""
    if not report.exists():
        return {"passed": 0, "failed": 0, "skipped": 0, "error": said}
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    found = {"passed": len(cases) - len(bad) - skipped, "failed": len(bad), "skipped": skipped}
    names = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
    return found | ({"failures": names[:SHOWN]} if names else {})


def interpreter(version: str) -> Path | None:
    """python3.x on PATH, else the newest of pyenv's."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*([Path(found)] if found else []), *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
    for candidate in candidates:
        asked = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True,
                               capture_output=True, check=False)  # fmt: skip
        if asked.stdout.strip() == version:
            return candidate
    return None


def measure(python: str, torch: str, pairs: list[tuple[str, str]], keep: bool, reuse: bool) -> list[dict[str, Any]]:
    """One row per pair of transformers and Triton with this Python and torch."""
    rows: list[dict[str, Any]] = [
        {"asked": [python, torch, transformers, triton], "commit": commit()} for transformers, triton in pairs
    ]
    base = interpreter(python)
    if base is None:
        return [row | {"problem": f"there is no Python {python}"} for row in rows]
    environment = Environment(python, torch)
    environment.log.unlink(missing_ok=True)
    try:
        if reuse and environment.python.exists():
            environment.copy_sources()
        else:
            environment.build(base, torch)
        for row, (transformers, triton) in zip(rows, pairs, strict=True):
            try:
                numpy = NUMPY.get(triton, "numpy")
                environment.pip("transformers", f"transformers=={transformers}", *TEST_TOOLS, numpy)
                # torch pins the Triton it was tested with; ours only needs the compiler's Python side.
                environment.pip("triton", "--no-deps", "--upgrade", f"triton=={triton}")
                row["versions"] = environment.versions()
                row["suites"] = {suite: environment.test(suite) for suite in SUITES}
            except Failed as error:
                row["problem"] = f"{error.step}: {error.said}"
            typer.echo(json.dumps(row))
    except Failed as error:
        rows = [row | {"problem": f"{error.step}: {error.said}"} for row in rows]
    finally:
        if not keep:
            shutil.rmtree(environment.folder, ignore_errors=True)
    return rows


def section(found: dict[str, Any]) -> str:
    """The matrix as a table."""
    lines = [
        "## Versions",
        "",
        "Each row is an environment of its own: vitcop built from source, then a selection of tests (every op through "
        "the dispatcher, opcheck, `torch.compile`, export; LLaVA generating; kernels in Triton's interpreter). No GPU.",
        "",
        "| Python | torch | transformers | Triton | NumPy | C++ kernels | ops | adapters | interpreter |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if "suites" not in row:
            lines.append(f"| {' | '.join(row['asked'])} | could not be tested here: {row['problem']} | | | | |")
            continue
        versions = [row["versions"][name] for name in COLUMNS]
        lines.append(f"| {' | '.join([*versions, *(_cell(row['suites'][suite]) for suite in SUITES)])} |")
    return "\n".join([*lines, "", record.origin(found), ""])


def _cell(suite: dict[str, Any]) -> str:
    if "error" in suite:
        return f"did not run ({suite['error']})"
    failed = f"**{suite['failed']} failed**, " if suite["failed"] else ""
    return f"{failed}{suite['passed']} passed, {suite['skipped']} skipped"


def main(
    only: Annotated[str, typer.Option(help="Part of `python-torch-transformers-triton`: run these alone.")] = "",
    keep: Annotated[bool, typer.Option(help="Leave the environments in out/matrix.")] = False,
    reuse: Annotated[bool, typer.Option(help="Use those that were kept, with the Python sources of today.")] = False,
) -> None:
    """Build and test every combination; write benchmarks/results/evidence/matrix.json after each group."""
    WORK.mkdir(parents=True, exist_ok=True)
    order = [(python, torch, *pair) for (python, torch), pairs in GROUPS.items() for pair in pairs]
    for (python, torch), pairs in GROUPS.items():
        chosen = [pair for pair in pairs if only in "-".join((python, torch, *pair))]
        if chosen:
            new = measure(python, torch, chosen, keep, reuse)
            before = record.load("matrix")["rows"] if record.path_of("matrix").exists() else []
            rows = {tuple(row["asked"]): row for row in (*before, *new)}
            record.keep("matrix", COMMAND, {"rows": [rows[cell] for cell in order if cell in rows]})


if __name__ == "__main__":
    typer.run(main)
