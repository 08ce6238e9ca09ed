"""Hooks that `torch.compile` leaves alone: they choose tokens, and have to run as Python on every call."""

import functools
import threading
from collections import UserList
from collections.abc import Callable
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

T = TypeVar("T")


class Hook(Protocol):
    def remove(self) -> None: ...


class uncopied:
    """A function that can be neither copied nor pickled, nor can what holds it: the copy of a model would be pruned
    forever, by the state of this one."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise TypeError(
            "model: expected one that is not being pruned, to copy or pickle, got one with vitcop's hooks in it; leave "
            "the `with` block or call `handle.remove()` first, or save its state_dict()"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__deepcopy__(None)


class untraced(uncopied):
    """The same, and a graph break where it would be traced."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.disabled = torch.compiler.disable(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Also in a frame that runs eagerly inside a compiled model: it is traced on its own.
        if torch.compiler.is_dynamo_compiling() or get_eval_frame_callback() is not None:
            return self.disabled(*args, **kwargs)
        return self.function(*args, **kwargs)


def disable(method: Callable[..., T]) -> Callable[..., T]:
    """`torch.compiler.disable`, whose cost is spared where no compiler is at work."""
    disabled = torch.compiler.disable(method)

    @functools.wraps(method)
    def call(*args: Any) -> T:
        if torch.compiler.is_dynamo_compiling() or get_eval_frame_callback() is not None:
            return disabled(*args)
        return method(*args)

    return call


class PerThread(threading.local, UserList[T]):
    """A list that every thread has for itself: threads may run one model at the same time."""


class Current(threading.local):
    """The run that a thread's decoder is in.

    Args:
        stands: those of the modules that were watched before, of all threads. Compiled code guards on a module's
            forward, so that a module gets the same one again.
    """

    run: Any = None

    def __init__(self, stands: "dict[nn.Module, Stand]") -> None:
        self.stands = stands


Around = Callable[[nn.Module, Callable[..., Any], Any, dict[str, Any]], Any]
"""`around(module, forward, args, kwargs)` gives what `forward(*args, **kwargs)` would, or something else."""

_PLACING = threading.Lock()


class Stand(uncopied):
    """Takes the place of a module's forward while runs want to see its calls. Other threads' calls pass through.

    It is an attribute of the module and no hook: torch iterates over hooks, and another thread may be at it.
    """

    def __init__(self, module: nn.Module, current: Current) -> None:
        self.module, self.current, self.place = module, current, _place(module)
        self.own = self.place in vars(module)
        self.forward: Callable[..., Any] = getattr(module, self.place)
        self.runs: dict[Any, Around] = {}
        super().__init__(self.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        around = self.runs.get(self.current.run)
        return self.forward(*args, **kwargs) if around is None else around(self.module, self.forward, args, kwargs)

    @property
    def fits(self) -> bool:
        """Whether it stands in its place, or can: the module has not been compiled or wrapped since."""
        if self.place != _place(self.module):
            return False
        now = getattr(self.module, self.place)
        return now is self or (now == self.forward and self.own == (self.place in vars(self.module)))


def _place(module: nn.Module) -> str:
    """A compiled call would trace what replaces `forward`."""
    return "forward" if getattr(module, "_compiled_call_impl", None) is None else "_compiled_call_impl"


class Stands:
    """Those of one run. `remove()` may be called again, and finishes then."""

    def __init__(self, run: Any, current: Current) -> None:
        self._run, self._current = run, current
        self._stands: list[Stand] = []

    def put(self, module: nn.Module, around: Around) -> None:
        """Let this run see, and change, the calls of a module until `remove()`."""
        with _PLACING:
            stand = self._current.stands.get(module)
            if stand is None or not stand.fits:
                stand = self._current.stands[module] = Stand(module, self._current)
            self._stands.append(stand)
            stand.runs[self._run] = around
            vars(module)[stand.place] = stand

    def remove(self) -> None:
        while self._stands:
            stand = self._stands[-1]
            with _PLACING:
                stand.runs.pop(self._run, None)
                held = vars(stand.module)
                if not stand.runs and held.get(stand.place) is stand:  # else replaced since, or another thread's too
                    if stand.own:
                        held[stand.place] = stand.forward
                    else:
                        del held[stand.place]
            self._stands.pop()


def plain(module: nn.Module) -> nn.Module:
    """The module in `torch.compile(module)`."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


class Uncompiled(uncopied):
    """A layer that runs as Python, also inside a compiled model: it is watched.

    A graph break in any hook of a traced call, as in those that capture outputs for transformers, can lose the calls of
    the hooks further in.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = plain(module)
        super().__init__(torch.compiler.disable(self.module._call_impl))
        self.before = self.module.__dict__.get("_compiled_call_impl")
        # Of a module without hooks, the compiler takes `forward` alone.
        self.hook = self.module.register_forward_hook(uncopied(lambda *_: None))
        self.module._compiled_call_impl = self

    def remove(self) -> None:
        self.hook.remove()
        if self.module.__dict__.get("_compiled_call_impl") is not self:
            return  # compiled while it was watched
        if self.before is None:
            del self.module._compiled_call_impl
        else:
            self.module._compiled_call_impl = self.before


class Seen(Generic[T]):
    """Values by name, of a thread's run of a module, which traced hooks may `put` as well.

    For hooks in what may be compiled by itself within an `Uncompiled` layer. A graph break inside a hook can lose its
    call (transformers 4.57's CLIP), so these are not `untraced`, and ask for no thread there: what is compiled there is
    for one thread at a time.
    """

    def __init__(self) -> None:
        self._values: dict[str | tuple[int, str], T] = {}

    def put(self, name: str, value: T) -> None:
        self._values[name if torch.compiler.is_compiling() else (threading.get_ident(), name)] = value

    def take(self, name: str) -> T:
        """The value, which is forgotten."""
        traced, own = self._values.pop(name, None), self._values.pop((threading.get_ident(), name), None)
        value = traced if own is None else own
        if value is None:
            raise RuntimeError(
                f"The vision tower ran without the hook that reads its {name}: a layer was replaced after attaching "
                "or compiled before; remove the pruning, call torch.compiler.reset() if compiled, and attach again."
            )
        return value
