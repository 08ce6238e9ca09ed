"""How many kernels a piece of work would launch on a GPU, counted on a CPU.

An op of ours counts as often as its Triton launcher launches (the launcher runs, its kernels do not), with whatever
else the launcher asks of PyTorch; every other op of PyTorch that is no view and no bare allocation counts once.
"""

import functools
import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch.utils._python_dispatch import TorchDispatchMode

import vitcop_kernels.ops

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "detach")


def _is_free(func: Any) -> bool:
    """A view, or memory that nobody writes."""
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    return (alias is not None and not alias.is_write) or func.overloadpacket.__name__ in ALLOCATIONS


class Launches(TorchDispatchMode):
    """`counts` by op name, of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.off = False  # leaves out what runs meanwhile

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.off, before = True, self.off
        try:
            yield
        finally:
            self.off = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.off:
            name = func.overloadpacket.__name__
            if func.namespace == "vitcop":
                self._launch(name, args, kwargs)
            elif not _is_free(func):
                self.counts[name] += 1
        return func(*args, **kwargs)

    def _launch(self, op: str, args: Any, kwargs: Any) -> None:
        def count(*args: Any, **kwargs: Any) -> None:
            self.counts[op] += 1

        launcher = getattr(importlib.import_module(f"vitcop_kernels.ops.{op}.kernel"), op)
        with ExitStack() as stack:
            for module in _launching_modules():
                stack.enter_context(mock.patch.object(module, "launch", count))
            stack.enter_context(self)  # what the launcher asks of PyTorch counts too
            launcher(*args, **kwargs)


@functools.cache
def _launching_modules() -> list[Any]:
    """The modules of vitcop_kernels that launch kernels, under the name that they call."""
    names = [m.name for m in pkgutil.walk_packages(vitcop_kernels.ops.__path__, "vitcop_kernels.ops.")]
    modules = [importlib.import_module(name) for name in names]
    return [module for module in modules if hasattr(module, "launch")]
