"""Record work on a GPU once and do it again: the part of CUDA graphs that tests replace on a CPU."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch


class Backend(Protocol):
    """Records work once and does it again on the same memory."""

    def takes(self, device: torch.device) -> bool: ...

    def warm_up(self, work: Callable[[], Any]) -> None:
        """Run `work` as it will run in a capture."""

    def capture(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        """A graph, and what `work` returned: tensors whose values each replay rewrites."""

    def replaying(self) -> contextlib.AbstractContextManager[None]:
        """Around all use of the graphs' memory: uses follow one another, from whatever streams they come."""

    def replay(self, graph: Any) -> None: ...

    def release(self, graphs: Sequence[Any]) -> None:
        """Give back their memory, when nothing uses it any more."""


class CudaGraphs:
    """torch.cuda.CUDAGraph, all in one memory pool.

    They may share it although they are replayed in any order: what one leaves is copied out before the next begins.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._alive = 0
        self._stream: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None  # end of the latest use of the graphs' memory

    def takes(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def warm_up(self, work: Callable[[], Any]) -> None:
        here = torch.cuda.current_stream()
        if self._stream is None or self._stream.device != here.device:  # the model may have moved since
            self._stream = torch.cuda.Stream(here.device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:
            here.wait_stream(self._stream)

    def capture(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if not self._alive:  # a pool that no graph uses is on its way back to the device
            self._pool = torch.cuda.graph_pool_handle()
        reason: Exception | None = None
        try:
            # Other threads go on allocating meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                try:
                    result = work()
                except Exception as error:
                    reason = error
                    raise
        except Exception as error:  # ending a broken capture raises an error that says nothing else
            raise reason or error from None
        finally:
            torch.cuda.set_stream(here)  # a capture that failed leaves its own stream behind
        self._alive += 1
        return graph, result

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        here = torch.cuda.current_stream()
        if self._done is not None:
            here.wait_event(self._done)
        try:
            yield
        finally:
            self._done = here.record_event()

    def replay(self, graph: Any) -> None:
        graph.replay()

    def release(self, graphs: Sequence[Any]) -> None:
        if graphs and self._stream is not None:
            torch.cuda.synchronize(self._stream.device)
        for graph in graphs:
            graph.reset()
        self._alive -= len(graphs)
