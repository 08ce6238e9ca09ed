"""How torch.cuda's graphs are called, on a torch.cuda that writes down what it was asked to do."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vitcop.engine.capture import CudaGraphs


class Cuda:
    """Streams and graphs by name. A capture whose body raises ends with an error of its own, as PyTorch's does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.here = Stream("caller", self.log)
        self.pools = 0
        for name in ("Stream", "current_stream", "set_stream", "stream", "graph", "CUDAGraph", "graph_pool_handle"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "synchronize", lambda device: self.log.append(f"synchronize {device}"))

    def Stream(self, device: int) -> "Stream":
        return Stream("side" if device == 0 else f"side of {device}", self.log, device)

    def move(self, device: int) -> None:
        """Another device is the current one from here on."""
        self.here = Stream("caller", self.log, device)

    def current_stream(self) -> "Stream":
        return self.here

    def set_stream(self, stream: "Stream") -> None:
        self.here = stream

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def CUDAGraph(self) -> "Cuda":
        return self

    def reset(self) -> None:
        self.log.append("reset")

    def replay(self) -> None:
        self.log.append(f"replay on {self.here.name}")

    @contextlib.contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.here = self.here, stream
        yield
        self.here = before

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: int, stream: "Stream", capture_error_mode: str) -> Iterator[None]:
        self.here = stream
        self.log.append(f"capture on {stream.name} into pool {pool}, {capture_error_mode}")
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.here = Stream("caller", self.log)


class Stream:
    def __init__(self, name: str, log: list[str], device: int = 0) -> None:
        self.name, self.log, self.device = name, log, device

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        return f"what {self.name} had to do"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_a_model_that_has_moved_is_captured_on_its_new_device(cuda: Cuda) -> None:
    graphs = CudaGraphs()
    graphs.warm_up(lambda: None)
    graph, _ = graphs.capture(lambda: None)
    cuda.move(1)
    graphs.release([graph])
    cuda.log.clear()
    graphs.warm_up(lambda: cuda.log.append(f"work on {cuda.here.name}"))
    graph, _ = graphs.capture(lambda: None)
    graphs.release([graph])
    assert "work on side of 1" in cuda.log and "capture on side of 1 into pool 2, thread_local" in cuda.log
    assert "synchronize 1" in cuda.log


def test_warm_up_runs_on_the_stream_of_the_capture(cuda: Cuda) -> None:
    graphs = CudaGraphs()
    graphs.warm_up(lambda: cuda.log.append(f"work on {cuda.here.name}"))
    assert cuda.log == ["side waits for caller", "work on side", "caller waits for side"]
    cuda.log.clear()
    _, result = graphs.capture(lambda: cuda.here.name)
    assert result == "side" and cuda.here.name == "caller"
    assert cuda.log == ["capture on side into pool 1, thread_local"]


def test_graphs_share_a_pool_until_none_is_left(cuda: Cuda) -> None:
    graphs = CudaGraphs()
    graphs.warm_up(lambda: None)
    first, second = graphs.capture(lambda: None)[0], graphs.capture(lambda: None)[0]
    graphs.release([first])
    third = graphs.capture(lambda: None)[0]
    assert cuda.pools == 1
    cuda.log.clear()
    graphs.release([second, third])
    assert cuda.log == ["synchronize 0", "reset", "reset"]  # nothing is freed that is in use
    graphs.capture(lambda: None)
    assert cuda.pools == 2


def test_a_failed_capture_says_why_and_gives_the_stream_back(cuda: Cuda) -> None:
    graphs, before = CudaGraphs(), cuda.here
    graphs.warm_up(lambda: None)

    def work() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        graphs.capture(work)
    assert cuda.here is before
    graphs.release([])
    assert "reset" not in cuda.log


def test_uses_from_several_streams_follow_one_another(cuda: Cuda) -> None:
    graphs = CudaGraphs()
    with graphs.replaying():
        graphs.replay(cuda)
    with cuda.stream(Stream("another", cuda.log)), pytest.raises(KeyError), graphs.replaying():
        raise KeyError
    with graphs.replaying():
        graphs.replay(cuda)
    assert cuda.log == [
        "replay on caller", "another waits for what caller had to do",
        "caller waits for what another had to do", "replay on caller",
    ]  # fmt: skip
