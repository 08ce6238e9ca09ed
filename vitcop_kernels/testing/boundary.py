"""Bytes -> a call of an op, good or malformed: the fuzzer's view of the op boundary.

A call is built as a user would build it, small and well formed, from the first bytes; later bytes spoil it: a dtype, a
rank, a size (up to 2^63 - 1, over strides of zero or beside an empty dimension, so that no memory is needed), a stride,
an index, a number, a word. Any bytes make a call, and the same bytes make the same call everywhere.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .draw import FLOATS

T = TypeVar("T")
ANY_DTYPE = (
    *FLOATS,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e5m2,
)
# Vectors of 4 to 16 lanes, their tails, and the blocks of 32, 64, 96, 512 and 1024 that the kernels work in.
TOKENS = (5, 1, 2, 3, 9, 16, 17, 33, 0, 40, 97, 130)
WIDTHS = (4, 1, 3, 8, 15, 16, 17, 33, 0, 64, 65, 130, 513, 1030)
HUGE_SIZES = (2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1)
# As numbers of things to allocate these must fail, so nothing between what fits and what no address space holds.
INTS = (-1, 0, 1, 7, -(2**31), -(2**63), 2**44, 2**62, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-45, 1e-320, 1e300, 1.0)


@dataclass
class Call:
    op: str
    given: dict[str, Any]  # by the names of the schema

    def bound(self, change: Callable[[Tensor], Tensor] = lambda t: t) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, every tensor passed through `change`."""

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            return [change(t) for t in value] if isinstance(value, list) else value

        schema = getattr(torch.ops.vitcop, self.op).default._schema.arguments
        known = [a for a in schema if a.name in self.given]
        args = [convert(self.given[a.name]) for a in known if not a.kwarg_only]
        return args, {a.name: convert(self.given[a.name]) for a in known if a.kwarg_only}

    def tensors(self) -> list[Tensor]:
        values = [v for value in self.given.values() for v in (value if isinstance(value, list) else [value])]
        return [v for v in values if isinstance(v, Tensor)]

    def __str__(self) -> str:
        def show(value: Any) -> str:
            if isinstance(value, list):
                return "[" + ", ".join(map(show, value)) + "]"
            if not isinstance(value, Tensor):
                return repr(value)
            text = f"{value.dtype} {tuple(value.shape)} by {value.stride()}".removeprefix("torch.")
            small = value.device.type == "cpu" and 0 < value.numel() <= 64 and not value.is_floating_point()
            return text + (f" {value.tolist()}" if small else "")

        return f"{self.op}(" + ", ".join(f"{name}={show(value)}" for name, value in self.given.items()) + ")"


class Bytes:
    """Choices read from bytes; zeros when they have run out."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def pick(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def below(self, n: int) -> int:
        return self.byte() % max(n, 1)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.byte())

    def batch(self) -> tuple[int, ...]:
        return self.pick(((), (2,), (1,), (3,), (0,)))

    def maybe(self, make: Callable[[], T]) -> T | None:
        return make() if self.byte() % 2 else None

    def float_dtype(self) -> torch.dtype:
        return self.pick((*FLOATS[:3], *FLOATS[:3], torch.float32, torch.float64))

    # --- tensors

    def floats(self, *shape: int, dtype: torch.dtype) -> Tensor:
        random = self.generator()
        x = torch.randn(shape, generator=random)
        kind = self.byte() % 8
        if kind == 1:  # ties and duplicates
            x = torch.randint(-1, 2, shape, generator=random).float()
        elif kind == 2:
            x = x * 1e30 if self.byte() % 2 else x * 1e-30
        elif kind == 3:
            x = x + 200
        elif kind in (4, 5) and x.numel():
            values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, 1e-42, -0.0, 65504.0, 0.0])
            where = torch.randint(0, x.numel(), (1 if kind == 4 else x.numel(),), generator=random)
            x.view(-1)[where] = values[torch.randint(0, len(values), where.shape, generator=random)]
        return self.laid_out(x.to(dtype))

    def ints(self, *shape: int, high: int, dtype: torch.dtype = torch.int64, low: int = 0) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator(), dtype=dtype)

    def bools(self, *shape: int) -> Tensor:
        return self.laid_out(torch.rand(shape, generator=self.generator()) < 0.7)

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values, or fewer of them, at other strides and offsets."""
        kind = self.byte() % 12
        if kind == 1 and x.dim() >= 2:
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind == 2 and x.dim() >= 2:
            return x.movedim(0, -1).contiguous().movedim(-1, 0)
        if kind == 3 and x.dim():
            return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
        if kind == 4 and x.dim():
            return torch.cat([x[..., :1], x, x[..., :1]], -1)[..., min(x.shape[-1], 1) :][..., : x.shape[-1]]
        if kind == 5:
            return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)
        if kind == 6 and x.dim() and x.numel():
            dim = self.below(x.dim())
            return x.narrow(dim, 0, 1).expand(x.shape)
        if kind == 7 and x.numel():  # windows that overlap
            strides = [self.below(3) for _ in x.shape]
            if 1 + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) <= x.numel():
                return x.contiguous().as_strided(x.shape, strides)
        if kind == 8 and x.dtype in FLOATS:
            return x._neg_view() if self.byte() % 2 else x.requires_grad_()
        return x

    def spoiled(self, index: Tensor, limit: int) -> Tensor:
        """Some entries out of range, out of order or extreme."""
        flat = index.clone().reshape(-1)
        info = torch.iinfo(index.dtype)
        values = (-1, -2, limit - 1, limit, limit + 1, info.max, info.min, 2**31, 0, self.byte())
        for _ in range(self.pick((0, 0, 0, 1, 1, 2, 5))):
            value = self.pick(values)
            if flat.numel() and info.min <= value <= info.max:
                flat[self.below(flat.numel())] = value
        return self.laid_out(flat.view(index.shape))

    def broken_tensor(self, t: Tensor) -> Tensor | None:
        kind = self.byte() % 10
        if kind == 0:
            return t.to(self.pick(ANY_DTYPE))
        if kind == 1:
            return t.unsqueeze(self.below(t.dim() + 1))
        if kind == 2 and t.dim() and t.numel():
            return t.select(self.below(t.dim()), 0)
        if kind == 3 and t.dim():
            dim = self.below(t.dim())
            return t.narrow(dim, 0, t.shape[dim] // 2)
        if kind == 4 and t.dim():
            dim = self.below(t.dim())
            if t.shape[dim] > 2**40:  # twice that is more than an int64
                return t
            return torch.cat([t, t], dim).narrow(dim, 0, min(t.shape[dim] + 1, 2 * t.shape[dim]))
        if kind in (5, 6) and t.dim():  # sizes beyond 2^31 without an element
            shape = list(t.shape)
            shape[self.below(len(shape))] = self.pick(HUGE_SIZES)
            empty = [k for k, size in enumerate(shape) if size not in HUGE_SIZES]
            if empty:
                shape[self.pick(empty)] = 0
                with suppress(RuntimeError):  # the other sizes multiply to more than an int64: torch has no such tensor
                    return t.new_empty(0).as_strided(shape, [1] * len(shape))
        if kind == 7:
            return None
        if kind == 8:
            return t.to("meta")
        return t.new_zeros(self.pick(((), (0,), (1, 1, 1, 1, 1))))

    def broken(self, value: Any) -> Any:
        if isinstance(value, list):
            if not value or self.byte() % 3 == 0:
                return [*value, *value, torch.zeros(3)]
            k = self.below(len(value))
            broken = self.broken_tensor(value[k])
            return [*value[:k], *([] if broken is None else [broken]), *value[k + 1 :]]
        if isinstance(value, Tensor):
            return self.broken_tensor(value)
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.pick((*INTS, value + 1 - 2 * (value > 2**60), value - 1, 2 * value % 2**62))
        if isinstance(value, float):
            return self.pick(NUMBERS)
        if isinstance(value, str):
            return self.pick(("", "released", "mean", "none", "x" * 300))
        return self.laid_out(torch.zeros(self.below(9)).to(self.pick(ANY_DTYPE)))  # a tensor instead of None

    def damaged(self, op: str, given: dict[str, Any], times: int) -> Call:
        """The call with some arguments broken, in ways that the dispatcher itself lets through."""
        for _ in range(times):
            name = self.pick(tuple(given))
            value, kind = self.broken(given[name]), type_of(op, name)
            if (value is None and kind == "Tensor") or (isinstance(value, Tensor) and "Tensor" not in kind):
                continue
            given[name] = value
        return Call(op, given)


def type_of(op: str, name: str) -> str:
    schema = getattr(torch.ops.vitcop, op).default._schema
    return next(str(a.type) for a in schema.arguments if a.name == name)


class Violation(AssertionError):
    """What no call may come to."""


def require(holds: Any, call: Call, why: str, *shown: Any) -> None:
    """`why` with `{}` for each value shown, of tensors their first elements."""
    if not holds:
        values = (v.reshape(-1)[:256].tolist() if isinstance(v, Tensor) else v for v in shown)
        raise Violation(f"{why.format(*values)}\n  {call}")


def within(call: Call, what: str, t: Tensor, low: int, high: int) -> None:
    if t.numel():
        require(t.min() >= low and t.max() < high, call, "{} outside [{}, {}): {}", what, low, high, t)
