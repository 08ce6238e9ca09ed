"""The one table of ops: what each is called with, what a right answer is, and what work it is.

A row is a module of `vitcop_kernels.testing.ops` with the op's name, found by itself. Tests, benchmarks, verification
and `vitcop bench` loop over `TABLE`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import vitcop_kernels  # noqa: F401  (registers the ops)

from . import ops as rows
from .boundary import Bytes, Call
from .draw import Draw
from .inputs import Random
from .op import Arguments, Case, Dims, Op, Shape

DTYPES = ("float32", "bfloat16", "float16")


def _load() -> dict[str, Op]:
    names = sorted(module.name for module in pkgutil.iter_modules(rows.__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{rows.__name__}.{name}").OP for name in names}


TABLE = _load()


def dims_of(op: str, given: Mapping[str, int] | None = None) -> Dims:
    """All dimensions of the op, defaults filled in.

    Raises ValueError, naming the dimension, where one is not the op's or out of range.
    """
    if op not in TABLE:
        raise ValueError(f"op: expected one of {', '.join(TABLE)}, got {op!r}")
    given, known = dict(given or {}), TABLE[op].dims
    for name, size in given.items():
        if name not in known:
            raise ValueError(f"{name}: {op} has no such dimension; expected some of {', '.join(known)}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    dims: Dims = {}
    for name, default in known.items():
        dims[name] = given.get(name, default(dims) if callable(default) else default)
    for part in ("clusters", "keep", "budget"):
        if dims.get(part, 1) > dims["tokens"]:
            raise ValueError(f"{part}: expected at most the {dims['tokens']} tokens, got {dims[part]}")
    if "width" in dims and dims["width"] % dims.get("heads", 1):
        raise ValueError(f"heads: expected a divisor of width {dims['width']}, got {dims['heads']}")
    return dims


def build(
    op: str,
    given: Mapping[str, int] | None = None,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Case:
    """The op with inputs of these dimensions. Raises ValueError naming what cannot be."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    dims = dims_of(op, given)
    args, kwargs = TABLE[op].make(dims, Random(seed, getattr(torch, dtype)))
    args = tree_map_only(Tensor, lambda t: t.to(device), args)
    return Case(op, args, kwargs, getattr(torch, dtype), dims, TABLE[op].flops(dims))


SMALL = {"tokens": 48, "width": 64, "heads": 2, "head_dim": 16, "batch": 1, "text": 6}


def real(small: bool = False) -> list[tuple[str, Shape]]:
    """Every op at the shapes that models give it; or once, at sizes that take no time."""
    if small:
        return [(op, Shape({n: s for n, s in SMALL.items() if n in row.dims})) for op, row in TABLE.items()]
    return [(op, shape) for op, row in TABLE.items() for shape in row.shapes]


TRITON_EVERY = 32  # one seed in so many makes a small case, which the Triton kernels get too


def case_of(op: str, seed: int) -> Case:
    """The fuzzer's case: a valid call, and a function of (op, seed) alone."""
    return drawn(op, Draw(op, seed, small=seed % TRITON_EVERY == 0), seed)


def drawn(op: str, draw: Draw, seed: int = -1) -> Case:
    dtype, structure, tokens, args, kwargs = TABLE[op].draw(draw)
    marks = draw.marks | {name for name, so in (("one token", tokens == 1), ("over 2048 tokens", tokens > 2048)) if so}
    return Case(
        op,
        args,
        kwargs,
        dtype,
        seed=seed,
        structure=structure,
        tokens=tokens,
        small=draw.small,
        marks=tuple(sorted(marks)),
    )


def call_from(op: str, data: bytes) -> Call:
    """Bytes to a call of the op, good or malformed; the same bytes make the same call everywhere."""
    b = Bytes(data)
    damages = b.pick((0, 0, 1, 1, 2))
    return b.damaged(op, TABLE[op].build(b, b.float_dtype()), damages)


def arguments(op: str, change: Mapping[str, Any] | None = None) -> Arguments:
    """The good arguments of `op`, some of them changed."""
    given = {**TABLE[op].good, **(change or {})}
    args, kwargs = Call(op, given).bound()
    return tuple(args), kwargs
