"""No op reads a value on the host: neither the launchers of the Triton kernels nor the references."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from host_reads import METHODS, HostRead, NoHostReads
from support import OPS, same_bits, samples, tensors
from torch.utils._pytree import tree_map_only

triton_installed = importlib.util.find_spec("triton") is not None


WAYS = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "bool": lambda x: bool(x[0]),
    "if": lambda x: 1 if x[0] else 0,
    "in": lambda x: x[0] in [5],
    "max": lambda x: max(x[0], x[1]),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "index of a list": lambda x: [1, 2, 3][x[0].long()],
    "slice": lambda x: x[: x[0].long()],
    "arange": lambda x: torch.arange(x[0]),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "index by mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "unique": lambda x: torch.unique(x),
    "bincount": lambda x: torch.bincount(x.long()),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long()),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_guard_sees_every_way_to_a_value(way: str) -> None:
    read: Any = WAYS[way]
    before = {name: getattr(torch.Tensor, name) for name in METHODS}
    x = torch.tensor([1.0, 0.0, 2.0])
    read(x)
    with pytest.raises(HostRead), NoHostReads():
        read(x)
    assert before == {name: getattr(torch.Tensor, name) for name in METHODS}
    read(x)


def test_the_guard_lets_pass_what_stays_on_the_device() -> None:
    x = torch.rand(4, 5)
    with NoHostReads() as guard:
        y = x[torch.arange(2)][:, None].where(x[:2, None] > 0.5, 0).sum(1).argsort()
        y = x.scatter(1, y, 1.0).masked_fill(x > 2, 0)
        y.topk(2), y.shape, y.numel(), x.new_zeros(3), torch.searchsorted(y, y)
    assert guard.count > 10


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_references(op: str, dtype: torch.dtype) -> None:
    reference = getattr(importlib.import_module(f"vitcop_kernels.ops.{op}.reference"), op)
    guard = NoHostReads()
    for args, kwargs in samples(op, dtype):
        with guard:
            assert tensors(reference(*args, **kwargs))
    assert guard.count > 0


@pytest.mark.skipif(not triton_installed, reason="needs triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, see test_launchers_on_a_gpu")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launchers(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter itself looks at tensors: the guard sleeps while a kernel runs."""
    from triton.runtime.interpreter import GridExecutor

    guard, run = NoHostReads(), GridExecutor.__call__
    kernels: list[Any] = []

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernels.append(self)
        with guard.suspended():
            return run(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", launch)
    launcher = getattr(importlib.import_module(f"vitcop_kernels.ops.{op}.kernel"), op)
    for args, kwargs in samples(op, dtype):
        launched = len(kernels)
        with guard:
            launcher(*args, **kwargs)
        assert len(kernels) > launched


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", OPS)
def test_launchers_on_a_gpu(op: str) -> None:
    call = getattr(torch.ops.vitcop, op)
    for args, kwargs in samples(op):
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.cuda(), (args, kwargs))
        call(*args, **kwargs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", OPS)
def test_several_streams_at_once(op: str) -> None:
    """The same bits from every stream: no workspace is shared between them."""
    call = getattr(torch.ops.vitcop, op)
    for args, kwargs in samples(op):
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.cuda(), (args, kwargs))
        expected = tensors(call(*args, **kwargs))
        streams = [torch.cuda.Stream() for _ in range(4)]
        torch.cuda.synchronize()
        got = []
        for _ in range(25):
            for stream in streams:
                with torch.cuda.stream(stream):
                    got.append(tensors(call(*args, **kwargs)))
        torch.cuda.synchronize()
        for values in got:
            assert all(same_bits(a.cpu(), b.cpu()) for a, b in zip(values, expected, strict=True))
