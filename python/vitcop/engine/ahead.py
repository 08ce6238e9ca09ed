"""Work of a stage that waits for no decoder layer: on a GPU it runs on a side stream, beside the layers in between.

A stage declares it as `Stage(..., ahead=work)`. It may look at the vision side and at what the stage before has chosen;
the Run starts it as soon as that choice is queued, and joins it before the stage. Fork and join are events, so a CUDA
graph captures them as a branch. On a CPU nothing can overlap, and the work is done when the stage asks for it.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .report import Stopwatch, Untimed

COUNTS = ("total", "count", "budget", "num_segments", "max_segment", "ordered")
READABLE = frozenset({*COUNTS, "saliency", "features", "positions", "segment"})


class VisionContext:
    """What of a `methods.Context` is there before the decoder has come to the stage."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        if name in READABLE:
            return getattr(self._context, name)
        raise AttributeError(f"ahead: expected one of {', '.join(sorted(READABLE))}, got {name!r}")


class Lane(Protocol):
    """Where work runs beside the caller."""

    def fork(self, work: Callable[[], Any]) -> Any:
        """Start `work` after everything the caller has queued. Should it raise, it is joined first."""

    def join(self, result: Any) -> None:
        """Whatever the caller queues from here on comes after the work; `result` (None: dropped) is the caller's."""


class SideStream:
    """A CUDA stream beside the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device, threading.get_ident())
        self._done: torch.cuda.Event | None = None

    def fork(self, work: Callable[[], Any]) -> Any:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                result = work()
        except BaseException:
            self._done = self._stream.record_event()
            self.join(None)
            raise
        self._done = self._stream.record_event()
        return result

    def join(self, result: Any) -> None:
        if self._done is None:
            return
        here = torch.cuda.current_stream(self._device)
        here.wait_event(self._done)
        self._done = None
        # Allocated over there, used and given back over here.
        pytree.tree_map_only(Tensor, lambda tensor: tensor.record_stream(here), result)


@functools.cache
def _stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """One a thread: what another thread captures must not get this one's work into its graph."""
    return torch.cuda.Stream(device)


def lane_for(device: torch.device) -> Lane | None:
    """None: the device does one thing after the other."""
    return SideStream(device) if device.type == "cuda" else None


class Ahead:
    """The work of one stage in a lane, by visual tokens of the samples. `watch` is told how long it took there."""

    def __init__(self, work: Callable[[], dict[int, Any]], lane: Lane, watch: Stopwatch | Untimed) -> None:
        self._work, self._lane, self.watch = work, lane, watch
        self._joined = False
        self._result = lane.fork(self._timed)

    def _timed(self) -> dict[int, Any]:
        with torch.no_grad():
            self.watch.start()
            result = self._work()
            self.watch.stop()
            return result

    def join(self) -> None:
        """Also what must be called where the result is not wanted any more: it makes memory safe to reuse."""
        if not self._joined:
            self._joined = True
            self._lane.join(self._result)

    def result(self, total: int) -> Any:
        """What the work gave for samples of `total` visual tokens; `join` has been called."""
        return self._result[total]
