"""vitcop_kernels._C once per sanitizer, each in a folder of its own under build/, and Pythons that run with it.

clang, for libFuzzer and for one toolchain throughout: `apt-get install clang-19 libclang-rt-19-dev llvm-19`, or any
other version named by CXX. torch itself is not instrumented, so a sanitizer sees our code, what it allocates (torch's
memory comes from malloc) and the library functions it calls. at::parallel_for is inlined into our code, and there made
of std::thread (verification/native/include): what libgomp does is invisible to ThreadSanitizer.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NATIVE = Path(__file__).parent / "native"
# -fno-sanitize: torch exports no type information for vptr; recursion through pybind11's C functions is no bug.
FLAGS = {
    "address": "-fsanitize=address,undefined -fno-sanitize=vptr,function -fsanitize=fuzzer-no-link",
    "thread": "-fsanitize=thread",
}
RUNTIMES = {"address": "asan", "thread": "tsan"}


def compiler() -> str:
    """A clang++: CXX if that is one, else the newest of the usual names on PATH."""
    for name in (os.environ.get("CXX", ""), "clang++", *(f"clang++-{v}" for v in range(25, 13, -1))):
        if "clang" in name and shutil.which(name):
            return name
    raise SystemExit("no clang++ on PATH; on Debian: apt-get install clang-19 libclang-rt-19-dev llvm-19")


def version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def runtime(part: str) -> str:
    """Path of one of clang's runtime libraries."""
    name = f"libclang_rt.{part}"
    found = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"{compiler()} has no {name}; on Debian it is in libclang-rt-*-dev")
    return path


def flags(sanitizer: str) -> str:
    return f"{FLAGS[sanitizer]} -shared-libsan -g1 -fno-omit-frame-pointer -I{NATIVE / 'include'}"


def build(sanitizer: str) -> Path:
    """Configure and build; returns the folder to put on PYTHONPATH in front of the repository."""
    import pybind11

    folder = ROOT / "build" / f"sanitize-{sanitizer}"
    package = folder / "vitcop_kernels"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CXX_COMPILER": compiler(),
        "CMAKE_CXX_FLAGS": flags(sanitizer),
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": package,
        "CMAKE_DISABLE_FIND_PACKAGE_OpenMP": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    tools = os.environ["PATH"] + os.pathsep + str(Path(sys.executable).parent)
    cmake = shutil.which("cmake", path=tools) or "cmake"
    env = os.environ | {"PATH": tools}
    defined = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run([cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *defined], check=True, env=env)
    subprocess.run([cmake, "--build", folder], check=True, env=env)
    for source in (ROOT / "vitcop_kernels").iterdir():
        link = package / source.name
        if not source.name.startswith(("_C", "__pycache__")) and not link.is_symlink():
            link.symlink_to(source)
    return folder


def libfuzzer(folder: Path) -> Path:
    """libFuzzer without its main(), as a library to preload: any process can then call LLVMFuzzerRunDriver."""
    library = folder / "libfuzzer.so"
    archive = runtime("fuzzer_no_main-x86_64.a")
    whole = ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive"]
    subprocess.run([compiler(), "-shared", "-o", library, *whole, "-lpthread", "-ldl", "-lm"], check=True)
    return library


def environment(sanitizer: str, folder: Path, log: Path, *preload: Path) -> dict[str, str]:
    """Of a Python that uses the build: reports go to files whose names begin with `log`."""
    # A report is counted, not fatal: one run shows them all. Leaks: Python's own are many. malloc that fails returns
    # null, as it does without a sanitizer; a request beyond the limit fails rather than fills the machine.
    common = f"log_path={log}:halt_on_error=0:allocator_may_return_null=1"
    symbolizer = shutil.which("llvm-symbolizer") or shutil.which(compiler().replace("clang++", "llvm-symbolizer"))
    if symbolizer:
        common += f":external_symbolizer_path={Path(symbolizer).resolve()}"
    memory = "detect_leaks=0:verify_asan_link_order=0:max_allocation_size_mb=4096:detect_stack_use_after_return=1"
    return os.environ | {
        "LD_PRELOAD": " ".join(map(str, (*preload, runtime(f"{RUNTIMES[sanitizer]}-x86_64.so")))),
        "ASAN_OPTIONS": f"{common}:{memory}",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        "TSAN_OPTIONS": f"{common}:ignore_noninstrumented_modules=1:report_signal_unsafe=0",
        "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT, ROOT / "python"))),
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "2",
    }
