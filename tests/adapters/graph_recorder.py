"""A stand-in for torch.cuda.CUDAGraph on a CPU, with its semantics.

A capture records every op with the tensors it was given, at the level of the dispatcher. A replay fills all that the
capture computed with garbage and does the same ops again, on the same tensors, writing into the same outputs. So what
Python decided while capturing stays decided, what is not copied into an input stays as it was, and what is not copied
out is lost at the next replay. Reading a value on the host, or making a tensor from host values, raises as it does on a
GPU. Unlike a GPU it also computes while capturing: `Recorder` therefore fills everything with garbage afterwards.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from host_reads import HostRead, NoHostReads
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Graph(NoHostReads):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ == "lift_fresh" and args[0].numel():
            raise HostRead("torch.tensor: a copy from the host")
        outputs = super().__torch_dispatch__(func, types, args, kwargs)
        fresh, place = [], 0
        returns = func._schema.returns
        for number, output in enumerate(outputs if isinstance(outputs, (list, tuple)) else [outputs]):
            for leaf in tree_leaves(output):  # an output may be a list of tensors
                if isinstance(leaf, Tensor) and returns[min(number, len(returns) - 1)].alias_info is None:
                    fresh.append((place, leaf))
                place += 1
        # Views need no second call: they look at memory that is written again.
        if fresh or func._schema.is_mutable:
            self.calls.append((func, args, kwargs, fresh))
        return outputs

    def poison(self) -> None:
        for _, _, _, fresh in self.calls:
            for _, tensor in fresh:
                integers = -(1 << 40) if tensor.dtype == torch.int64 else 99
                tensor.fill_(torch.nan if tensor.is_floating_point() else integers)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        self.poison()
        for func, args, kwargs, fresh in self.calls:
            flat = tree_leaves(func(*args, **kwargs))
            for number, tensor in fresh:
                tensor.copy_(flat[number])


class Recorder:
    """`vitcop.engine.capture.Backend` on a CPU. `events` says what was done, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.graphs: list[Graph] = []  # alive

    def takes(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def warm_up(self, work: Callable[[], Any]) -> None:
        self.events.append("warm up")
        work()

    def capture(self, work: Callable[[], Any]) -> tuple[Graph, Any]:
        self.events.append("capture")
        graph = Graph()
        with graph:
            result = work()
        graph.poison()
        self.graphs.append(graph)
        return graph, result

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        yield

    def replay(self, graph: Graph) -> None:
        self.events.append("replay")
        graph.replay()

    def release(self, graphs: Sequence[Graph]) -> None:
        for graph in graphs:
            self.events.append("release")
            self.graphs.remove(graph)

    def poison(self) -> None:
        """What is left in the graphs' memory is nobody's."""
        for graph in self.graphs:
            graph.poison()
