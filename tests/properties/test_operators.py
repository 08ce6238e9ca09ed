"""What every op owes to PyTorch: opcheck, whole-graph compilation, gradients or a clear refusal, no host syncs."""

import importlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import FLOATS, OPS, assert_same_bits, name_of, op_of, samples, tensors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import vitcop_kernels
from vitcop_kernels.testing.ops._segments import plan
from vitcop_kernels.testing.table import TABLE

DIFFERENTIABLE = tuple(op for op, row in TABLE.items() if row.differentiable)
every_op = pytest.mark.parametrize("op", OPS)


def differentiable(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


OPCHECKS = [
    ("vitcop", torch.float32),
    ("vitcop", torch.bfloat16),
    ("vitcop", torch.float64),
    ("vitcop_reference", torch.float32),
]


def test_every_registered_op_is_tested_and_public() -> None:
    """`OPS` is what torch has registered, so an op without samples, or without a function of its name, fails here."""
    assert len(OPS) >= 12 and set(TABLE) == set(OPS)
    assert set(vitcop_kernels.ops.__all__) - {"num_centers_for"} == set(OPS)
    for op in OPS:
        assert list(samples(op)), op
        schemas = [str(op_of(namespace, op).default._schema) for namespace in ("vitcop", "vitcop_reference")]
        assert schemas[0].split("::")[1] == schemas[1].split("::")[1]


@every_op
@pytest.mark.parametrize(("namespace", "dtype"), OPCHECKS, ids=lambda x: x if isinstance(x, str) else name_of(x))
def test_opcheck(op: str, namespace: str, dtype: torch.dtype) -> None:
    for args, options in samples(op, dtype):
        torch.library.opcheck(op_of(namespace, op).default, args, options)
        if op in DIFFERENTIABLE:  # where there is no gradient, opcheck would ask for one
            torch.library.opcheck(op_of(namespace, op).default, (args[0].clone().requires_grad_(), *args[1:]), options)


@every_op
def test_compiles_as_one_graph(op: str) -> None:
    for args, options in samples(op):
        torch._dynamo.reset()
        run = torch.compile(op_of("vitcop", op), fullgraph=True, backend="aot_eager")
        assert_same_bits(run(*args, **options), op_of("vitcop", op)(*args, **options))


@pytest.mark.slow
def test_a_pruning_step_compiles_with_inductor() -> None:
    """Cluster, plan and merge in one graph, as a model under torch.compile would."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile's default backend needs a C++ compiler")
    torch._dynamo.reset()

    def step(x: Tensor, places: Tensor, keys: Tensor) -> Tensor:
        labels = vitcop_kernels.vic_cluster(x, places, 8.0, 0.6, 6)[0]
        perm, offsets, anchors, merged = vitcop_kernels.plan_tokens(labels, vitcop_kernels.key_norms(keys), 6, 20)
        return vitcop_kernels.segment_mean(x, perm, offsets, anchors=anchors, merged=merged)

    args = torch.randn(2, 40, 16), torch.rand(40, 2), torch.randn(2, 4, 40, 8)
    try:
        got = torch.compile(step, fullgraph=True)(*args)
    except torch._inductor.exc.InductorError as error:  # a compiler that does not work here is not ours to test
        pytest.skip(f"inductor cannot compile here: {str(error)[:200]}")
    torch.testing.assert_close(got, step(*args))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["vitcop", "vitcop_reference"])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients_of_every_differentiable_op(op: str, namespace: str) -> None:
    for (x, *rest), options in samples(op, torch.float64):

        def first_output(x: Tensor, rest: Any = rest, options: Any = options) -> Tensor:
            return next(t for t in tensors(op_of(namespace, op)(x, *rest, **options)) if t.requires_grad)

        assert torch.autograd.gradcheck(first_output, x.requires_grad_())


@pytest.mark.parametrize("merge", ["mean", "anchor_plus_mean"])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("namespace", ["vitcop", "vitcop_reference"])
def test_gradient_of_segment_mean(namespace: str, batch: int, merge: str) -> None:
    perm, offsets, anchors, merged = plan(12, batch)
    offsets = torch.cat([offsets, offsets[..., -1:]], -1)  # an empty segment at the end
    anchors, merged = torch.nn.functional.pad(anchors, (0, 1), value=-1), torch.nn.functional.pad(merged, (0, 1))
    shape = (batch, 12, 3) if batch else (12, 3)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    op = op_of(namespace, "segment_mean")
    assert torch.autograd.gradcheck(lambda x: op(x, perm, offsets, anchors, merged, merge=merge), x)
    offsets = offsets.clamp(min=1, max=10)  # tokens before the first and after the last segment
    assert torch.autograd.gradcheck(lambda x: op(x, perm, offsets, anchors, merged, merge=merge), x)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_gradients_of_segment_mean_have_the_dtype_and_a_batch_changes_nothing(dtype: torch.dtype) -> None:
    x = torch.randn(3, 12, 5).to(dtype).requires_grad_()
    csr = plan(12, 3)[:2]
    weights = torch.randn(3, 9, 5).to(dtype)
    (torch.ops.vitcop.segment_mean(x, *csr) * weights).sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    alone = x[1].detach().clone().requires_grad_()
    (torch.ops.vitcop.segment_mean(alone, *(t[1] for t in csr)) * weights[1]).sum().backward()
    assert_same_bits(alone.grad, x.grad[1])


def test_no_segments_have_a_gradient_of_zero() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y = torch.ops.vitcop.segment_mean(x, torch.arange(4), torch.zeros(1, dtype=torch.int64))
    y.sum().backward()
    assert x.grad is not None and x.grad.eq(0).all()


@pytest.mark.parametrize("namespace", ["vitcop", "vitcop_reference"])
@pytest.mark.parametrize("op", [op for op in OPS if op not in DIFFERENTIABLE])
def test_a_gradient_that_does_not_exist_is_refused_clearly(op: str, namespace: str) -> None:
    for args, options in samples(op):
        result = op_of(namespace, op)(*differentiable(args), **options)
        floats = [t for t in tensors(result) if t.is_floating_point()]
        if not floats:  # indices alone: autograd has nothing to ask
            assert not any(t.requires_grad for t in tensors(result))
            continue
        for t in floats:
            with pytest.raises(RuntimeError, match=f"^{op}: has no gradient"):
                t.sum().backward(retain_graph=True)


# --- host syncs ------------------------------------------------------------------------------------------------------

SYNCS = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_to_copy_host")


class NoHostSync(TorchDispatchMode):
    """Raises on every operation that would make a GPU wait for the host to read a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in SYNCS, f"{name} reads values on the host"
        if name in ("index", "index_put", "index_put_"):
            assert not any(t is not None and t.dtype == torch.bool for t in args[1]), (
                f"{name} by a mask counts on the host"
            )
        return func(*args, **(kwargs or {}))


def reference_function(op: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"vitcop_kernels.ops.{op}.reference"), op)


@every_op
def test_the_reference_never_syncs_with_the_host(op: str) -> None:
    for args, options in samples(op):
        with NoHostSync():
            reference_function(op)(*args, **options)
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:  # where there are no values, none can be read
            fake = tree_map_only(Tensor, mode.from_tensor, list(args))
            shapes = [t.shape for t in tensors(reference_function(op)(*fake, **options))]
        assert shapes == [t.shape for t in tensors(op_of("vitcop_reference", op)(*args, **options))]


# --- the doors -------------------------------------------------------------------------------------------------------


@every_op
def test_the_public_function_is_the_op(op: str) -> None:
    schema = op_of("vitcop", op).default._schema
    names = [a.name for a in schema.arguments]
    required = [a.name for a in schema.arguments if not a.has_default_value()]
    public = getattr(vitcop_kernels, op)
    for args, options in samples(op):
        named = dict(zip(names, args, strict=False))
        positional = [named.pop(name) for name in required if name in named]
        assert_same_bits(public(*positional, **named, **options), op_of("vitcop", op)(*args, **options))


@pytest.mark.parametrize("heads", ["l2", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_key_norms_are_the_same_before_and_after_rope(dtype: torch.dtype, heads: str) -> None:
    keys = torch.randn(2, 4, 30, 16, dtype=torch.float64)
    angle = torch.arange(100, 130).double()[:, None] * 10_000 ** (-torch.arange(8).double() / 8)  # [N, d/2]
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    rotated = keys * cos + torch.cat([-keys[..., 8:], keys[..., :8]], -1) * sin
    before, after = (vitcop_kernels.key_norms(k.to(dtype), heads=heads) for k in (keys, rotated))
    torch.testing.assert_close(after, before, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


def test_number_of_centers() -> None:
    count = vitcop_kernels.num_centers_for
    assert [count(a, 172) for a in (0.12, 0.5, 1.0, 1e-9)] == [21, 86, 172, 1]
    assert [count(a, 172, semantics="released") for a in (0.12, 0.5, 1.0, 1e-9)] == [20, 86, 172, 1]
    with pytest.raises(ValueError, match=r"^num_centers_for: center_ratio: expected a share in \(0, 1\], got 0$"):
        count(0.0, 5)
    with pytest.raises(ValueError, match=r"^num_centers_for: center_ratio: expected a share in \(0, 1\], got 1.5$"):
        count(1.5, 5)
    with pytest.raises(ValueError, match=r"^num_centers_for: num_tokens: expected at least 1, got 0$"):
        count(0.5, 0)
    with pytest.raises(ValueError, match=r'^num_centers_for: semantics: expected "paper" or "released", got "x"$'):
        count(0.5, 5, semantics="x")
