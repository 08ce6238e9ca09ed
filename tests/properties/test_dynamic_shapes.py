"""One graph, compiled or exported, for every number of tokens and samples: of each op that is registered."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from support import OPS, assert_same_bits
from torch import nn
from torch.export import Dim

from vitcop_kernels.testing.table import TABLE

every_op = pytest.mark.parametrize("op", OPS)
SIZES = ((2, 12), (3, 20), (5, 33))
"""(samples B, tokens N); the first is compiled."""


@every_op
def test_compiled_once_for_all_sizes(op: str) -> None:
    """Marked dynamic: torch.compile raises where a graph would hold for one size only, or would have to break."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    call, first, dynamic = TABLE[op].dynamic(*SIZES[0])
    for tensor, dims in zip(first, dynamic, strict=True):
        for dim in dims:
            torch._dynamo.mark_dynamic(tensor, dim)
    run = torch.compile(call, fullgraph=True, backend=counter)
    for size in SIZES:
        args = first if size == SIZES[0] else TABLE[op].dynamic(*size)[1]
        assert_same_bits(run(*args), call(*args))
    assert counter.frame_count == 1, "compiled again for another size"


class Module(nn.Module):
    """With the names of the call's own parameters: export of torch 2.9 trips over guards on `*args`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = call


@every_op
def test_exported_once_for_all_sizes(op: str) -> None:
    call, first, dynamic = TABLE[op].dynamic(*SIZES[0])
    shapes = tuple(dict.fromkeys(dims, Dim.DYNAMIC) for dims in dynamic)  # raises where a size is specialised
    program = torch.export.export(Module(call), first, dynamic_shapes=shapes)
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert getattr(torch.ops.vitcop, op).default in called, "the op was taken apart"
    run = program.module()
    for size in SIZES:
        args = TABLE[op].dynamic(*size)[1]
        assert_same_bits(run(*args), call(*args))
