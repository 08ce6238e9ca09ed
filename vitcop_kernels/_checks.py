"""Argument checks shared by the reference, the fake and (in the same words) the native kernel of each op."""

import math
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTS = (torch.int64, torch.int32)


def fail(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: {argument}: expected {expected}, got {got}")


def shape_of(t: Tensor) -> str:
    return "[" + ", ".join(str(s) for s in t.shape) + "]"


def floating(op: str, argument: str, t: Tensor) -> None:
    if t.dtype not in FLOATS:
        raise TypeError(f"{op}: {argument}: expected float32, bfloat16, float16 or float64, got {_name(t.dtype)}")


def same_dtype(op: str, argument: str, t: Tensor, other: str, dtype: torch.dtype) -> None:
    if t.dtype != dtype:
        raise TypeError(f"{op}: {argument}: expected the dtype of {other} ({_name(dtype)}), got {_name(t.dtype)}")


def dtype_is(op: str, argument: str, t: Tensor, *dtypes: torch.dtype) -> None:
    if t.dtype not in dtypes:
        names = " or ".join(_name(d) for d in dtypes)
        raise TypeError(f"{op}: {argument}: expected {names}, got {_name(t.dtype)}")


def dims(op: str, argument: str, t: Tensor, *allowed: int, layout: str) -> None:
    if t.dim() not in allowed:
        fail(op, argument, layout, shape_of(t))


def shape_is(op: str, argument: str, t: Tensor, expected: tuple[int | torch.SymInt, ...]) -> None:
    if t.dim() != len(expected) or any(a != b for a, b in zip(t.shape, expected, strict=True)):
        fail(op, argument, "[" + ", ".join(str(s) for s in expected) + "]", shape_of(t))


def same_device(op: str, argument: str, t: Tensor, other: str, device: torch.device) -> None:
    if t.device != device:
        fail(op, argument, f"the device of {other} ({device})", t.device)


def anchors_for(
    op: str,
    merge: str,
    anchors: Tensor | None,
    merged: Tensor | None,
    shape: tuple[int | torch.SymInt, ...],
    other: str,
    device: torch.device,
) -> None:
    """`merge`, and the anchors and merged flags `[.., S]` that "anchor_plus_mean" needs."""
    one_of(op, "merge", merge, "mean", "anchor_plus_mean")
    for name, t, dtype in (("anchors", anchors, torch.int64), ("merged", merged, torch.bool)):
        if t is not None:
            dtype_is(op, name, t, dtype)
            same_device(op, name, t, other, device)
            shape_is(op, name, t, shape)
        elif merge == "anchor_plus_mean":
            fail(op, name, 'a tensor with merge="anchor_plus_mean"', None)


def one_of(op: str, argument: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        fail(op, argument, " or ".join(f'"{a}"' for a in allowed), f'"{value}"')


def at_least(op: str, argument: str, value: int | torch.SymInt, low: int) -> None:
    if value < low:
        fail(op, argument, f"at least {low}", value)


def in_range(op: str, argument: str, value: int | torch.SymInt, low: int, high: int | torch.SymInt) -> None:
    if value < low or value > high:
        fail(op, argument, f"an integer in [{low}, {high}]", value)


def positive_finite(op: str, argument: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        fail(op, argument, "a positive finite number", f"{value:g}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
