"""A copy of the tree, in which one bug at a time is planted and the op's tests are run."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from .bug import Bug

ROOT = Path(__file__).parents[3]
TREE = ROOT / "build" / "mutants" / "tree"
BUILD = ROOT / "build" / "mutants" / "cmake"
MODULE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
# The same tests for every instruction set, so one is enough; a mutant is to compile in seconds.
QUICK_BUILD = (('MATCHES "^(x86_64|AMD64|amd64)$"', 'MATCHES "^(none)$"'), ("-O3 -ffp-contract", "-O1 -ffp-contract"))


def copy_tree() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "_C*.so")
    for name in ("vitcop_kernels", "tests", "csrc", "benchmarks", "python"):
        shutil.copytree(ROOT / name, TREE / name, ignore=ignore)
    for name in ("pyproject.toml", "CMakeLists.txt", "setup.py"):
        shutil.copy(ROOT / name, TREE / name)
    cmake = TREE / "CMakeLists.txt"
    text = cmake.read_text()
    for old, new in QUICK_BUILD:
        if old not in text:
            raise SystemExit(f"CMakeLists.txt no longer has {old!r}")
        text = text.replace(old, new)
    cmake.write_text(text)


def _cmake(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [shutil.which("cmake", path=tools) or "cmake", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"PATH": tools}, capture_output=True, text=True, check=False)


def configure() -> None:
    import pybind11

    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": TREE / "vitcop_kernels",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    flags = [f"-D{name}={value}" for name, value in options.items()]
    run = _cmake("-S", TREE, "-B", BUILD, "-G", "Ninja", *flags)
    if run.returncode or compile_kernels():
        raise SystemExit(f"the kernels do not build:\n{run.stderr}")


def compile_kernels() -> str:
    """The compiler's complaint, empty if there is none. Only what depends on the mutated file is compiled."""
    run = _cmake("--build", BUILD)
    return "" if run.returncode == 0 else run.stdout[-2000:]


def tests_of(bug: Bug) -> list[str]:
    """An op's tests; those of key_proj and key_proj_norms share a file, vic_cluster's are in several."""
    name = {"key_proj_norms": "key_proj", "vic_cluster_varlen": "vic_cluster"}.get(bug.op, bug.op)
    if bug.layer == "Triton":
        found = sorted((TREE / "tests" / "kernels").glob(f"test_{name}*.py"))
        found = [path for path in found if name != "segment_mean" or "backward" not in path.name]
    else:
        extra = ["test_vic_cluster_batches.py", "test_golden.py"] if name == "vic_cluster" else []
        found = [TREE / "tests" / "ops" / file for file in (f"test_{name}.py", *extra)]
    return [str(path.relative_to(TREE)) for path in found]


def pytest_arguments(bug: Bug) -> list[list[str]]:
    """Runs of pytest, one after another until one fails."""
    common = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", f"--rootdir={TREE}", "-c", "pyproject.toml"]
    runs = [[*common, *tests_of(bug)]]
    errors = [*common, "tests/properties/test_errors.py", "-k", bug.op]
    fakes = [*common, "tests/properties/test_operators.py", "-k", f"opcheck and {bug.op}"]
    return [errors, fakes, *runs] if bug.layer == "checks" else [*runs, errors] if bug.layer == "C++" else runs


def _child(arguments: list[str], log: Path) -> None:
    """In a fork that has torch loaded already: the tests, on the tree's code."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.setsid()
    os.chdir(TREE)
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(TREE), str(TREE / "python")]
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "vitcop", "vitcop_kernels")]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TREE), str(TREE / "python")])  # of processes that tests start
    import pytest

    os._exit(int(pytest.main(arguments)))


def run_tests(arguments: list[str], timeout: float) -> tuple[bool, str]:
    """(passed, what failed first)."""
    log = TREE / "log.txt"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            _child(arguments, log)
        finally:
            os._exit(99)
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, f"did not end in {timeout:.0f} s"
        time.sleep(0.05)
    if os.WIFSIGNALED(status):
        return False, signal.Signals(os.WTERMSIG(status)).name
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    code = os.WEXITSTATUS(status)
    if code == 5:  # nothing collected
        raise SystemExit(f"no tests for {arguments}")
    return code == 0, failed[1] if failed else f"pytest ended with {code}"


def fate(bug: Bug, timeout: float) -> dict[str, str]:
    """Plant, compile, test, and undo."""
    path = TREE / bug.file
    before = path.read_text()
    bug.planted_in(TREE)
    try:
        if bug.layer == "C++" and (complaint := compile_kernels()):
            return {"fate": "does not compile", "by": complaint[-300:]}
        for arguments in pytest_arguments(bug):
            passed, by = run_tests(arguments, timeout)
            if not passed:
                return {"fate": "killed", "by": by}
        return {"fate": "equivalent", "by": bug.equivalent} if bug.equivalent else {"fate": "survived", "by": ""}
    finally:
        path.write_text(before)
