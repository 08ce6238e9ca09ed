"""One graph, compiled or exported, for every number of tokens and samples: of each op that is registered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from support import OPS, assert_same_bits
from torch import Tensor, nn
from torch.export import Dim

import vitcop_kernels
from vitcop_kernels.testing.ops._segments import plan

every_op = pytest.mark.parametrize("op", OPS)
SIZES = ((2, 12), (3, 20), (5, 33))
"""(samples B, tokens N); the first is compiled."""


@dataclass
class Case:
    """A call of a public function in which every integer argument follows from shapes, as a method's would."""

    call: Callable[..., Any]
    args: tuple[Tensor, ...]
    dynamic: tuple[tuple[int, ...], ...]  # of each argument: the dimensions that vary


def case(op: str, b: int, n: int) -> Case:
    public: Any = getattr(vitcop_kernels, op)
    r = torch.randn
    if op == "key_norms":
        return Case(lambda k: public(k), (r(b, 3, n, 4),), ((0, 2),))
    if op in ("key_proj", "key_proj_norms"):
        return Case(lambda h, w: public(h, w, num_heads=2), (r(b, n, 6), r(8, 6)), ((0, 1), ()))
    if op == "attention_saliency":
        return Case(lambda q, k: public(q, k), (r(b, 4, 3, 8), r(b, 2, n, 8)), ((0,), (0, 2)))
    if op == "select_tokens":
        return Case(lambda s: public(s, s.shape[-1] // 3), (r(b, n),), ((0, 1),))
    if op == "plan_tokens":
        labels = torch.randint(0, 4, (b, n))
        return Case(lambda c, s: public(c, s, 4, c.shape[-1] // 2), (labels, r(b, n)), ((0, 1), (0, 1)))
    if op == "segment_mean":
        return Case(lambda x, p, o: public(x, p, o), (r(b, n, 5), *plan(n, b)[:2]), ((0, 1),) * 3)
    if op == "segment_mean_backward":
        size = max(1, 3 * n // 4)
        return Case(lambda g, p, o: public(g, p, o), (r(b, size, 5), *plan(n, b)[:2]), ((0, 1),) * 3)
    if op == "compact_sequence":
        index = torch.arange(n).expand(b, n).contiguous()
        return Case(lambda x, i, p, o, a: public(x, [i], p, o, a), (r(b, n, 5), index, *plan(n, b)[:3]), ((0, 1),) * 5)
    if op == "expand_plan":
        slots, anchors = ((torch.arange(k) + 2).expand(b, k).contiguous() for k in (n, n // 3))

        def expand(slots: Tensor, anchors: Tensor) -> Any:
            total = slots.shape[1]
            return public(slots, anchors - 2, num_slots=2 * total, out_len=total + anchors.shape[1])

        return Case(expand, (slots, anchors), ((0, 1),) * 2)
    if op == "vic_cluster":
        return Case(
            lambda x, p: public(x, p, 3.0, 0.5, x.shape[-2] // 4), (r(b, n, 5), torch.rand(n, 2)), ((0, 1), (0,))
        )
    if op == "vic_cluster_varlen":
        cu = torch.arange(b + 1, dtype=torch.int32) * n

        def packed(x: Tensor, p: Tensor, cu: Tensor) -> Any:
            longest = x.shape[0] // (cu.shape[0] - 1)
            return public(x, p, cu, longest, 3.0, 0.5, longest // 4)

        return Case(packed, (r(b * n, 5), torch.rand(b * n, 2), cu), ((0,), (0,), (0,)))
    raise NotImplementedError(f"{op}: expected a case of every registered op")


@every_op
def test_compiled_once_for_all_sizes(op: str) -> None:
    """Marked dynamic: torch.compile raises where a graph would hold for one size only, or would have to break."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    first = case(op, *SIZES[0])
    for tensor, dims in zip(first.args, first.dynamic, strict=True):
        for dim in dims:
            torch._dynamo.mark_dynamic(tensor, dim)
    run = torch.compile(first.call, fullgraph=True, backend=counter)
    for size in SIZES:
        args = first.args if size == SIZES[0] else case(op, *size).args
        assert_same_bits(run(*args), first.call(*args))
    assert counter.frame_count == 1, "compiled again for another size"


class Module(nn.Module):
    """With the names of the call's own parameters: export of torch 2.9 trips over guards on `*args`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = call


@every_op
def test_exported_once_for_all_sizes(op: str) -> None:
    first = case(op, *SIZES[0])
    shapes = tuple(dict.fromkeys(dims, Dim.DYNAMIC) for dims in first.dynamic)  # raises where a size is specialised
    program = torch.export.export(Module(first.call), first.args, dynamic_shapes=shapes)
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert getattr(torch.ops.vitcop, op).default in called, "the op was taken apart"
    run = program.module()
    for size in SIZES:
        args = case(op, *size).args
        assert_same_bits(run(*args), first.call(*args))
