"""`vitcop doctor`: what is usable on this machine, and why the rest is not.

Needs nothing but Python and torch, so it also runs in a bare install; versions are read from package metadata, since
importing transformers only to name it would take seconds.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

TRANSFORMERS_RANGE = ("4.57", "6")
"""Supported transformers: from the first, below the second (as in pyproject.toml)."""

OK, OFF, MISSING = "ok", "off", "missing"


@dataclass
class Check:
    """One line of the table. `state`: ok (usable), off (not usable on this machine), missing (can be installed)."""

    name: str
    state: str
    detail: str


def checks() -> list[Check]:
    return [
        _python(),
        _vitcop(),
        _torch(),
        _native(),
        _cuda(),
        _triton(),
        _flash_attention(),
        _transformers(),
        *_extras(),
    ]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _python() -> Check:
    state = OK if sys.version_info >= (3, 11) else OFF
    reason = "" if state == OK else "; vitcop needs 3.11 or later"
    return Check("Python", state, f"{platform.python_version()} on {platform.system()} {platform.machine()}{reason}")


def _vitcop() -> Check:
    version = _version("vitcop")
    if version is None:
        return Check("vitcop", OK, "run from its source tree, not installed")
    return Check("vitcop", OK, version)


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", MISSING, f"cannot be imported: {error}; pip install torch")
    return Check("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} CPU threads")


def _native() -> Check:
    name = "C++ kernels (CPU)"
    try:
        import vitcop_kernels
    except (ImportError, OSError) as error:
        return Check(name, OFF, f"vitcop_kernels cannot be imported: {error}")
    if vitcop_kernels.native_error is not None:
        return Check(name, OFF, f"{vitcop_kernels.native_error}; the PyTorch reference serves every op, slower")
    module: Any = importlib.import_module("vitcop_kernels._C")
    info = module.build_info()
    compiler = " ".join(str(info[key]) for key in ("compiler", "compiler_version") if info.get(key))
    parts = [f"built with {compiler} for torch {info.get('torch', '?')}"]
    if info.get("isa_compiled"):
        parts.append(f"compiled for {', '.join(info['isa_compiled'])}")
    active = info.get("isa_active") or info.get("isa")
    if active:
        parts.append(f"using {active}")
    return Check(name, OK, "; ".join(parts))


def _cuda() -> Check:
    try:
        import torch
    except (ImportError, OSError):
        return Check("CUDA", OFF, "torch cannot be imported")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("CUDA", OK, f"{torch.version.cuda}: {names}")
    if torch.version.cuda is None:
        return Check("CUDA", OFF, "this torch was built without CUDA; everything runs on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Check("CUDA", OFF, "CUDA_VISIBLE_DEVICES hides every GPU; everything runs on the CPU")
    return Check("CUDA", OFF, f"torch has CUDA {torch.version.cuda} but finds no GPU; everything runs on the CPU")


def _triton() -> Check:
    version = _version("triton")
    if version is None:
        hint = "pip install 'vitcop[gpu]'" if sys.platform == "linux" else "exists for Linux only"
        return Check("Triton", MISSING, f"not installed, only used on a GPU; {hint}")
    if _cuda().state != OK:
        return Check("Triton", OFF, f"{version} is installed, but there is no GPU that torch can use")
    return Check("Triton", OK, version)


def _flash_attention() -> Check:
    version = _version("flash-attn")
    if version is None:
        return Check(
            "flash-attn", MISSING, "not installed, not needed: pruned models also run on SDPA or eager attention"
        )
    if _cuda().state != OK:
        return Check("flash-attn", OFF, f"{version} is installed, but there is no GPU that torch can use")
    return Check("flash-attn", OK, version)


def _transformers() -> Check:
    first, end = TRANSFORMERS_RANGE
    supported = f"supported: {first} or later, below {end}"
    version = _version("transformers")
    if version is None:
        return Check("transformers", MISSING, f"not installed; {supported}; pip install 'vitcop[hf]'")
    if not _numbers(first) <= _numbers(version) < _numbers(end):
        return Check("transformers", OFF, f"{version} is outside the supported range; {supported}")
    return Check("transformers", OK, f"{version} ({supported})")


EXTRAS = {"pillow": "hf", "typer": "cli", "rich": "cli", "matplotlib": "cli"}
"""Distributions of the extras and the extra each one belongs to."""


def _extras() -> list[Check]:
    found = []
    for distribution, extra in EXTRAS.items():
        version = _version(distribution)
        if version is None:
            found.append(Check(distribution, MISSING, f"not installed; pip install 'vitcop[{extra}]'"))
        else:
            found.append(Check(distribution, OK, version))
    return found


def missing_extras(*distributions: str) -> list[str]:
    """Which of these distributions are not importable here, in order."""
    modules = {"pillow": "PIL"}
    return [name for name in distributions if importlib.util.find_spec(modules.get(name, name)) is None]


def as_json(results: list[Check]) -> str:
    return json.dumps({"checks": [asdict(check) for check in results]}, indent=2)


def as_text(results: list[Check]) -> str:
    width = max(len(check.name) for check in results)
    return "\n".join(f"{check.name:{width}}  {check.state:7}  {check.detail}" for check in results)
