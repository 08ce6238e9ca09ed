"""Two torch.library namespaces with one schema per op.

`torch.ops.vitcop.<op>` is what users call: the reference serves every backend, native kernels replace it on theirs.
`torch.ops.vitcop_reference.<op>` is always the plain PyTorch truth, on any device and in float64: what tests compare
with, and where native kernels send the dtypes they do not handle.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

_LIBRARIES = {name: torch.library.Library(name, "DEF") for name in ("vitcop", "vitcop_reference")}


def register(
    schema: str,
    *,
    check: Callable[..., None],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    indices_only: bool = False,
    cuda: str | None = None,
) -> None:
    """Define one op in both namespaces: schema, reference for every backend, fake, autograd.

    `check` takes the op's arguments and raises on bad ones; it runs before the reference and before the fake. Native
    kernels check for themselves, in the same words. Without `backward` the op is not differentiable, and a gradient
    asked through it raises a RuntimeError that says so. `cuda` names the module whose function of the op's name
    launches the Triton kernel; it is imported on the first call. An op that returns `indices_only` has nothing for
    autograd to do, and is spared its detour through Python.
    """
    op_name = schema[: schema.index("(")]
    if backward is None:
        backward, setup_context = _refuse_backward(op_name), None
    for namespace, library in _LIBRARIES.items():
        name = f"{namespace}::{op_name}"
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(op_name, _checked(check, reference), "CompositeExplicitAutograd")
        torch.library.register_fake(name, _checked(check, fake), lib=library)
        if not indices_only:
            torch.library.register_autograd(name, backward, setup_context=setup_context, lib=library)
    if cuda is not None and importlib.util.find_spec("triton") is not None:
        _LIBRARIES["vitcop"].impl(op_name, _checked(check, _import_on_first_call(cuda, op_name)), "CUDA")


def _import_on_first_call(module: str, function: str) -> Callable[..., Any]:
    @functools.cache
    def load() -> Callable[..., Any]:
        return getattr(importlib.import_module(module), function)

    return lambda *args, **kwargs: load()(*args, **kwargs)


def _checked(check: Callable[..., None], implementation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(implementation)
    def run(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return implementation(*args, **kwargs)

    return run


def _refuse_backward(op_name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        raise RuntimeError(
            f"{op_name}: has no gradient (it ranks or chooses tokens); "
            "detach its inputs, or take gradients through segment_mean"
        )

    return backward
