"""Shared by the tests of the ops: calling an op with everything around it checked, layouts, comparisons by bits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import vitcop_kernels
from vitcop_kernels.testing.judge import verify
from vitcop_kernels.testing.table import TABLE

REGISTERED = torch._C._dispatch_get_all_op_names()
OPS = tuple(sorted(name.removeprefix("vitcop::") for name in REGISTERED if name.startswith("vitcop::")))
NATIVE_OPS = {op for op in OPS if torch._C._dispatch_has_kernel_for_dispatch_key(f"vitcop::{op}", "CPU")}
LOW_PRECISION = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *LOW_PRECISION, torch.float64)
KERNEL_FLOATS = FLOATS[:3]  # float64 goes to the reference: a few tests see to it that it arrives there


def native_isa() -> str | None:
    """Instruction set the native kernels use, None without them."""
    if not NATIVE_OPS:
        return None
    return str(vitcop_kernels._C.build_info().get("isa_active"))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [t for value in values if isinstance(value, (Tensor, list, tuple)) for t in tensors(value)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (t.detach().contiguous().reshape(-1) for t in (a, b))
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def assert_same_bits(got: Any, want: Any, what: str = "") -> None:
    for k, (a, b) in enumerate(zip(tensors(got), tensors(want), strict=True)):
        assert same_bits(a, b), f"{what} output {k}: {a} and {b} differ"


def strides(t: Tensor) -> list[int]:
    """Where they matter: of dimensions longer than one, of tensors that hold something."""
    return [step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1 and t.numel()]


def op_of(namespace: str, op: str) -> Callable[..., Any]:
    return getattr(getattr(torch.ops, namespace), op)


def reference(op: str, *args: Any, **kwargs: Any) -> Any:
    return op_of("vitcop_reference", op)(*args, **kwargs)


def call(op: str, *args: Any, **kwargs: Any) -> Any:
    """`torch.ops.vitcop.<op>`, showing on the way that it leaves its inputs alone, gives the same bits twice and
    shapes and
    dtypes like the reference."""
    kept = tree_map_only(Tensor, torch.clone, args)  # companions come in a list
    got = op_of("vitcop", op)(*args, **kwargs)
    again = op_of("vitcop", op)(*args, **kwargs)
    assert_same_bits(got, again, f"{op}, second run:")
    assert_same_bits(args, kept, f"{op} changed an input:")
    return got


def both(op: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """(what users get, what the reference says)."""
    got, want = call(op, *args, **kwargs), reference(op, *args, **kwargs)
    for a, b in zip(tensors(got), tensors(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert strides(a) == strides(b), f"{op}: strides {a.stride()} and {b.stride()}"
    return got, want


def assert_exact(op: str, *args: Any, **kwargs: Any) -> Any:
    """Equal to the reference in every value."""
    got, want = both(op, *args, **kwargs)
    for k, (a, b) in enumerate(zip(tensors(got), tensors(want), strict=True)):
        assert torch.equal(a, b), f"{op} output {k}: {a.tolist()} instead of {b.tolist()}"
    return got


def assert_right(op: str, *args: Any, **kwargs: Any) -> Any:
    """The reference's answer and the kernel's, each judged by the truth of the table of ops; the kernel's."""
    got = call(op, *args, **kwargs)
    verify(op, args, kwargs, reference(op, *args, **kwargs), "reference")
    verify(op, args, kwargs, got)
    return got


def samples(op: str, dtype: torch.dtype = torch.float32) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Good calls, small ones, for tests that hold for all ops alike."""
    return TABLE[op].samples(dtype)


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values at other strides."""
    yield "contiguous", x.contiguous()
    if x.dim() >= 2:
        yield "transposed", x.transpose(-1, -2).contiguous().transpose(-1, -2)
        yield "first dimension last", x.movedim(0, -1).contiguous().movedim(-1, 0)
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan") if x.is_floating_point() else 77)
    wide[..., 1::2] = x
    yield "every other column", wide[..., 1::2]
    padded = x.new_full((*x.shape[:-1], x.shape[-1] + 3), float("nan") if x.is_floating_point() else 77)
    padded[..., 3:] = x
    yield "a slice of longer rows", padded[..., 3:]
    offset = x.new_empty(x.numel() + 1)[1:].view(x.shape)  # data pointer not aligned to a vector
    yield "unaligned", offset.copy_(x)


def expanded(x: Tensor, batch: int) -> Tensor:
    """[...] -> [batch, ...] with stride 0."""
    return x.unsqueeze(0).expand(batch, *x.shape)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_batch_invariant(op: str, batched: Sequence[Any], *shared: Any, samples: int, **kwargs: Any) -> None:
    """A sample alone, in a batch of one and in the whole batch, on one thread and on two: the same bits."""

    def at(index: Any) -> list[Any]:
        return [None if t is None else t[index] for t in batched]

    whole = tensors(call(op, *batched, *shared, **kwargs))
    with threads(1):
        assert_same_bits(tensors(call(op, *batched, *shared, **kwargs)), whole, f"{op}, one thread:")
    for b in range(samples):
        alone = tensors(call(op, *at(b), *shared, **kwargs))
        one = tensors(call(op, *at(slice(b, b + 1)), *shared, **kwargs))
        assert_same_bits(alone, [t[b] for t in whole], f"{op}, sample {b} alone:")
        assert_same_bits([t[0] for t in one], [t[b] for t in whole], f"{op}, sample {b} in a batch of one:")
