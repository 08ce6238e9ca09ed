"""A guard that raises where Python reads the value of a tensor: on a GPU, it would wait for the device there."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Python's ways to a value, some of which reach no dispatcher on a CPU.
METHODS = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "is_nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__array__",
)
# Ops that read one inside, or whose shape depends on one.
OPS = {
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "allclose",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
}


class HostRead(RuntimeError):
    """A value was read on the host."""


def reads(func: Any, args: Sequence[Any]) -> bool:
    """Whether an op, as a dispatch mode sees it, makes the host wait for its input."""
    name = func.overloadpacket.__name__
    by_mask = name.startswith("index") and isinstance(args[1], (list, tuple))
    counted = name == "repeat_interleave" and isinstance(args[0], Tensor) and len(args) == 1
    return name in OPS or counted or (by_mask and any(i is not None and i.dtype == torch.bool for i in args[1]))


class NoHostReads(TorchDispatchMode):
    """Within it a host read raises `HostRead`. It must be entered once at a time; `count` is the number of ops seen."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._methods: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if reads(func, args):
            raise HostRead(str(func))
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> "NoHostReads":
        for name in METHODS:
            self._methods[name] = vars(Tensor).get(name)
            setattr(Tensor, name, _refusal(name))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, method in self._methods.items():
            if method is None:
                delattr(Tensor, name)  # inherited
            else:
                setattr(Tensor, name, method)
        self._methods.clear()

    @property
    def active(self) -> bool:
        return bool(self._methods)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """For what stands in for a device, and may look."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


@functools.cache
def _refusal(name: str) -> Any:
    def refuse(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise HostRead(f"Tensor.{name}")

    return refuse
