"""Hooks that `torch.compile` leaves alone: they choose tokens, and have to run as Python on every call."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

Before = Callable[[nn.Module, Any, Any], Any]


class Hook(Protocol):
    def remove(self) -> None: ...


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, and a graph break where it would be traced. Costs nothing where nothing is compiled."""
    eager = torch.compiler.disable(function)

    @functools.wraps(function)
    def hook(*args: Any, **kwargs: Any) -> Any:
        return (eager if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return hook


class _InFrontOfCompiled:
    """`before` in front of a layer that `layer.compile()` has compiled: such a call has its own hooks inside."""

    def __init__(self, module: nn.Module, before: Before) -> None:
        compiled: Any = module._compiled_call_impl
        self.module, self.compiled = module, compiled

        def call(*args: Any, **kwargs: Any) -> Any:
            changed = before(module, args, kwargs)
            args, kwargs = (args, kwargs) if changed is None else changed
            return compiled(*args, **kwargs)

        self.call: Any = torch.compiler.disable(call, recursive=False)
        module._compiled_call_impl = self.call

    def remove(self) -> None:
        if self.module._compiled_call_impl is self.call:
            self.module._compiled_call_impl = self.compiled


def before_forward(module: nn.Module, before: Before) -> Hook:
    """Let `before(module, args, kwargs)` see, and change, what `module` is called with."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return _InFrontOfCompiled(module, before)
    return module.register_forward_pre_hook(untraced(before), with_kwargs=True)
