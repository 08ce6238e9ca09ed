"""Layers of a vision tower and the hooks on them: the one of the configuration, and those that calls ask for."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from vitcop.engine.decoder_keys import unwrapped
from vitcop.engine.hooks import Seen, Uncompiled, plain, uncopied

W = TypeVar("W", bound="Watched")
NAMES = ("query", "keys", "output")


def detached(x: Tensor) -> Tensor:
    return x.detach() if x.requires_grad else x


class Watched:
    """Hooks that are put in one after another, by `ways`, on these modules."""

    def __init__(self, modules: Sequence[Any], ways: Sequence[Callable[[], Any]]) -> None:
        self.modules, self._ways = [unwrapped(module) for module in modules], ways
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Interrupted, it is taken out again by `remove`."""
        for way in self._ways:
            self._hooks.append(way())

    def forget(self) -> None:
        """Drop what this thread's latest run has left."""

    def remove(self) -> None:
        while self._hooks:
            self._hooks[-1].remove()
            self._hooks.pop()


class WatchedLayer(Watched):
    """What a layer computes, run by run and thread by thread.

    Args:
        query, keys: modules in it whose outputs these are. rows: those of the query that are of interest.
    """

    def __init__(self, layer: Any, query: nn.Module, keys: nn.Module, rows: Callable[[Tensor], Tensor]) -> None:
        seen: Seen[Tensor] = Seen()
        self._seen = seen

        def keep_query(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.put("query", rows(output))

        def keep_keys(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.put("keys", output.detach())

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            seen.put("output", output[0] if isinstance(output, tuple) else output)

        ways: list[Callable[[], Any]] = [
            lambda: Uncompiled(layer),
            lambda: query.register_forward_hook(uncopied(keep_query)),
            lambda: keys.register_forward_hook(uncopied(keep_keys)),
            lambda: plain(layer).register_forward_hook(uncopied(keep_output)),
        ]
        super().__init__((layer, query, keys), ways)

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, keys and output of this thread's latest run, which are forgotten."""
        query, keys, output = (self._seen.take(name) for name in NAMES)
        return query, keys, output

    def forget(self) -> None:
        """Drop what this thread's latest run has left."""
        for name in NAMES:
            with contextlib.suppress(RuntimeError):  # watched only since it ran
                self._seen.take(name)


class WatchedLayers(Generic[W]):
    """By number. They stay watched: threads may run the tower at the same time."""

    def __init__(self, watch: Callable[[int], W]) -> None:
        self._watch, self._layers, self._lock = watch, dict[int, W](), threading.Lock()

    def add(self, number: int) -> None:
        """Watch a layer, or what has taken the place of one of its modules since, such as LoRA's."""
        now = self._watch(number)
        with self._lock:
            known = self._layers.get(number)
            if known is not None and known.modules == now.modules:
                return
            if known is not None:
                known.remove()
            self._layers[number] = now
            now.install()

    def take(self: "WatchedLayers[WatchedLayer]", number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, keys and output of a layer, and of none of the others."""
        found = self._layers[number].take()
        self.forget()
        return found

    def forget(self) -> None:
        for layer in self._layers.copy().values():
            layer.forget()

    def remove(self) -> None:
        while self._layers:
            number = next(reversed(self._layers))
            self._layers[number].remove()
            del self._layers[number]
