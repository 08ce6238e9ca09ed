"""Every error message, word for word, from the kernels, the references and the fakes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import NATIVE_OPS, OPS, op_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from vitcop_kernels.testing.table import TABLE, arguments


def bad_calls() -> Iterator[Any]:
    for op in OPS:
        for k, (change, error, text) in enumerate(TABLE[op].bad):
            yield pytest.param(op, change, error, f"{op}: {text}", id=f"{op}-{k}-{next(iter(change))}")


@pytest.mark.parametrize("op", OPS)
def test_the_calls_that_the_bad_ones_vary_are_good(op: str) -> None:
    args, options = arguments(op)
    for namespace in ("vitcop", "vitcop_reference"):
        op_of(namespace, op)(*args, **options)


@pytest.mark.parametrize(("op", "change", "error", "text"), list(bad_calls()))
@pytest.mark.parametrize("where", ["vitcop", "vitcop_reference", "fake", "meta"])
def test_a_bad_argument_is_named_with_what_was_expected_and_what_came(
    op: str, change: dict[str, Any], error: type[Exception], text: str, where: str
) -> None:
    args, options = arguments(op, change)
    namespace = where if where.startswith("vitcop") else "vitcop"
    with pytest.raises(error) as caught:
        if where == "fake":
            with FakeTensorMode() as mode:
                op_of(namespace, op)(*tree_map_only(Tensor, mode.from_tensor, args), **options)
        else:
            meta = tree_map_only(Tensor, lambda t: t.to("meta"), args) if where == "meta" else args
            op_of(namespace, op)(*meta, **options)
    assert type(caught.value) is error
    assert str(caught.value) == text


PAIRS = [(op, argument, other) for op, row in TABLE.items() for argument, other in row.devices]


@pytest.mark.parametrize(("op", "argument", "other"), PAIRS)
def test_tensors_on_two_devices_are_refused(op: str, argument: str, other: str) -> None:
    args, options = arguments(op, {argument: TABLE[op].good[argument].to("meta")})
    with pytest.raises(ValueError, match=f"^{op}: {argument}: expected the device of {other} \\(cpu\\), got meta$"):
        op_of("vitcop", op)(*args, **options)


MALFORMED = [[1, 4, 9], [0, 10, 9], [0, 6, 4, 9], [0, 4, 8], [0, 4, 10], [0, 9, 9], [-1, 4, 9]]


@pytest.mark.parametrize("cu", MALFORMED, ids=str)
def test_vic_cluster_varlen_refuses_malformed_cu_seqlens_in_the_kernel(cu: list[int]) -> None:
    if "vic_cluster_varlen" not in NATIVE_OPS:
        pytest.skip("the reference reads no value on the host, it clamps")
    for dtype in (torch.int32, torch.int64):
        with pytest.raises(ValueError, match=r"^vic_cluster_varlen: cu_seqlens: expected .*, got "):
            torch.ops.vitcop.vic_cluster_varlen(torch.zeros(9, 4), None, torch.tensor(cu, dtype=dtype), 5, 8.0, 0.6, 3)
