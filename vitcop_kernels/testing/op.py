"""What a row of the table is, and what a case is."""

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .boundary import Bytes, Call
from .draw import Draw
from .inputs import Random
from .permutation import Outcome, Shuffle
from .verdicts import Verdict

Dims = dict[str, int]
Default = int | Callable[[Dims], int]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Drawn = tuple[torch.dtype, str, int, tuple[Any, ...], dict[str, Any]]  # dtype, structure, tokens, args, kwargs
# A call whose integers follow from shapes, as a method's would; arguments; of each, the dimensions that vary.
Dynamic = tuple[Callable[..., Any], tuple[Tensor, ...], tuple[tuple[int, ...], ...]]
BadCall = tuple[dict[str, Any], type[Exception], str]  # what changes, the error, its text after "<op>: "


@dataclass
class Case:
    """An op with arguments: a shape of the table (`dims`), or what the fuzzer drew (`seed`)."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtype: torch.dtype
    dims: Dims = field(default_factory=dict)
    flops: float = 0.0  # of the definition, in whatever unit does them
    seed: int = -1
    structure: str = ""
    tokens: int = 0
    small: bool = False
    marks: tuple[str, ...] = ()

    @property
    def shape(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.dims.items())

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype_name}"

    @property
    def device(self) -> torch.device:
        return next(t.device for t in tree_leaves(self.args) if isinstance(t, Tensor))

    def bytes(self, outputs: Any) -> int:
        """Every input read once and every output written once."""
        flat = [t for t in tree_leaves((self.args, outputs)) if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in flat)

    def run(self) -> Any:
        return getattr(torch.ops.vitcop, self.op)(*self.args, **self.kwargs)

    def reference(self) -> Any:
        """The op in plain PyTorch, as `torch.ops.vitcop_reference` has it."""
        return getattr(torch.ops.vitcop_reference, self.op)(*self.args, **self.kwargs)

    def compiled_reference(self) -> Callable[[], Any]:
        """torch.compile of the same function, which a registered op would hide from the compiler."""
        function = getattr(importlib.import_module(f"vitcop_kernels.ops.{self.op}.reference"), self.op)
        run = compiled(function)
        return lambda: run(*self.args, **self.kwargs)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile on the first call: some Pythons and systems refuse it at once, and a benchmark goes on without."""

    @functools.cache
    def load() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    return lambda *args, **kwargs: load()(*args, **kwargs)


class Truth(Protocol):
    """The right answer of one case, from the specification, in float64."""

    def judge(self, got: Any, implementation: str) -> Verdict: ...


@dataclass(frozen=True)
class Shape:
    """Dimensions that a model gives an op; the rest are the op's defaults."""

    dims: Mapping[str, int]
    dtype: str = "float32"
    where: str = ""
    target_us: float | None = None  # of the project, on an H200, in a CUDA graph


@dataclass(frozen=True)
class Op:
    """A row of the table."""

    # Real shapes: name -> default, one that depends on others after them.
    dims: Mapping[str, Default]
    make: Callable[[Dims, Random], Arguments]
    flops: Callable[[Dims], float]
    shapes: tuple[Shape, ...]
    # Small inputs: good ones by hand, the fuzzer's, the boundary's (which spoils them), and bad arguments one by one.
    samples: Callable[[torch.dtype], Iterator[Arguments]]
    dynamic: Callable[[int, int], Dynamic]  # of so many samples and tokens
    draw: Callable[[Draw], Drawn]
    build: Callable[[Bytes, torch.dtype], dict[str, Any]]
    good: Mapping[str, Any]  # arguments by name that `bad` varies
    bad: tuple[BadCall, ...]
    devices: tuple[tuple[str, str], ...]  # arguments that must be on one device
    # Right answers.
    truth: Callable[[Case], Truth]
    permute: Callable[[Callable[..., Any], Shuffle, torch.dtype], Outcome]
    permuted: str  # what permuting the tokens does, in words
    by_value: tuple[str, ...] = ()  # arguments whose values the kernels check and fakes cannot
    values: Callable[[Call, list[Tensor]], None] = lambda call, got: None  # outputs that a caller may use unread
    exact: bool = False  # indices: equal to the reference
    differentiable: bool = False
    batched: tuple[int, ...] = ()  # positional arguments with a batch dimension; none: ragged
    rank: int = 3  # of the first argument with a batch


def share(name: str, of: float) -> Callable[[Dims], int]:
    return lambda dims: max(1, math.ceil(of * dims[name]))


def product(*names: str, each: float = 1.0) -> Callable[[Dims], float]:
    return lambda dims: each * math.prod(dims[name] for name in names)
