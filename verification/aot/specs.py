"""Every configuration that dispatch can choose, and a digest of all that its code depends on."""

import ast
import functools
import hashlib
import importlib.util
import json
import pkgutil
import textwrap
from collections.abc import Iterator
from typing import Any

import triton.language as tl

from vitcop_kernels import ops
from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import plain_options


def collect() -> dict[str, list[AotSpec]]:
    """Configurations by op; their names are unique."""
    names = sorted(module.name for module in pkgutil.iter_modules(ops.__path__) if module.ispkg)
    modules = {op: [f"{ops.__name__}.{op}.{part}" for part in ("aot", "kernel")] for op in names}
    present = {op: next(filter(importlib.util.find_spec, parts), None) for op, parts in modules.items()}
    found = {op: importlib.import_module(name).aot_specs() for op, name in present.items() if name}
    seen: set[str] = set()
    for spec in (spec for specs in found.values() for spec in specs):
        if spec.name in seen:
            raise ValueError(f"aot_specs: {spec.name} is there twice")
        seen.add(spec.name)
        missing = set(spec.kernel.arg_names) - set(spec.signature) - set(spec.constexprs)
        strange = (set(spec.signature) | set(spec.constexprs) | set(spec.divisible)) - set(spec.kernel.arg_names)
        if missing or strange:
            raise ValueError(f"aot_specs: {spec.name}: arguments missing {sorted(missing)}, unknown {sorted(strange)}")
    return found


def digest(spec: AotSpec) -> str:
    """Of the kernel's source and configuration: the same for every version of Triton and Python."""
    options = {name: value for name, value in plain_options(spec.num_warps).items() if name == "maxnreg"} | spec.options
    what = (
        source_digest(spec.kernel),
        spec.signature,
        sorted(spec.constexprs.items()),
        spec.num_warps,
        spec.num_stages,
        sorted(spec.divisible),
        sorted(options.items()),
    )
    return hashlib.sha256(json.dumps(what, default=_plain).encode()).hexdigest()[:16]


@functools.cache
def source_digest(kernel: Any) -> str:
    """Of the source of a kernel, of the device functions it calls and of the constants they read."""
    parts = sorted(set(_parts(kernel, set())))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _parts(function: Any, seen: set[str]) -> Iterator[str]:
    plain = function.fn
    name = f"{plain.__module__}.{plain.__qualname__}"
    if name in seen:
        return
    seen.add(name)
    tree = ast.parse(textwrap.dedent("".join(function.raw_src)))
    yield f"{name}: {_shape(tree)}"
    for node in ast.walk(tree):
        value = plain.__globals__.get(node.id) if isinstance(node, ast.Name) else None
        if _is_jit(value):
            if not value.fn.__module__.startswith("triton."):
                yield from _parts(value, seen)
        elif isinstance(value, (tl.constexpr, bool, int, float, str)):
            yield f"{plain.__module__}.{node.id} = {_plain(value)!r}"  # type: ignore[union-attr]


def _is_jit(value: Any) -> bool:
    return hasattr(value, "fn") and hasattr(value, "arg_names")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value


def _shape(node: Any) -> str:
    """A syntax tree without comments, docstrings, layout and places; what is absent or empty is left out."""
    if isinstance(node, list):
        return "[" + ",".join(map(_shape, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    kept = [f"{name}={_shape(value)}" for name, value in fields.items() if value not in (None, []) and name != "ctx"]
    return f"{type(node).__name__}({','.join(kept)})"
