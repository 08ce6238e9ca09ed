"""Drives the CMake build of `vitcop_kernels._C`; everything else is in pyproject.toml.

VITCOP_NATIVE=1 makes a failed native build an error, VITCOP_NATIVE=0 leaves it out, unset tries and goes on without.
`python setup.py build_ext --inplace` rebuilds the module of an editable install.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
NATIVE = os.environ.get("VITCOP_NATIVE", "auto")


def tool(name: str) -> str | None:
    """Path of a program on PATH or beside this Python (a venv's pip need not have the venv on PATH)."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")]))


def why_not_native() -> str | None:
    """The reason why the C++ kernels cannot be built here, None if they can."""
    if NATIVE == "0":
        return "VITCOP_NATIVE=0"
    for module in ("torch", "pybind11"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not in the build environment (use `pip install --no-build-isolation`)"
    compiler = (os.environ.get("CXX", "").split() or ["c++"])[0]  # empty: unset, as CMake takes it
    for name in ("cmake", "ninja", compiler):
        if tool(name) is None:
            return f"{name} not found"
    return None


def without_native(reason: str) -> None:
    line = f"vitcop: installing without the C++ CPU kernels: {reason}"
    if NATIVE == "1":
        raise SystemExit(line)
    print(line, file=sys.stderr, flush=True)


class CMakeBuild(build_ext):
    def run(self) -> None:
        try:
            super().run()
        except (subprocess.CalledProcessError, OSError) as error:
            failed = error.cmd[0] if isinstance(error, subprocess.CalledProcessError) else error
            without_native(f"the native build failed ({failed}; its output is above)")
            self.extensions = []  # nothing to install

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target.parent,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        cmake = tool("cmake") or "cmake"
        flags = [f"-D{key}={value}" for key, value in configure.items()]
        subprocess.run([cmake, "--fresh", "-S", ROOT, "-B", build, "-G", "Ninja", *flags], check=True)
        subprocess.run([cmake, "--build", build], check=True)


reason = why_not_native()
if reason:
    without_native(reason)
setup(
    ext_modules=[] if reason else [Extension("vitcop_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
