"""One small call for every kernel, dtype and branch of dispatch, judged by the truths of the table of ops.

This is what CI runs on compiled code, in the emulator. The interpreter has these cases in the other tests.
"""

import zlib

import pytest
import torch
from branches import branches
from launchers import INTERPRETED, launch
from support import KERNEL_FLOATS, assert_same_bits, name_of
from test_vic_cluster_together import as_one_launch

from vitcop_kernels.testing.judge import verify
from vitcop_kernels.testing.op import Arguments
from vitcop_kernels.testing.table import TABLE

pytestmark = pytest.mark.skipif(
    INTERPRETED, reason="run by `make emulate` and on a GPU; other tests cover these cases in the interpreter"
)


def drawn(op: str, dtype: torch.dtype, name: str) -> Arguments:
    """The same numbers for every test that asks for them."""
    torch.manual_seed(zlib.crc32(f"{op} {dtype} {name}".encode()))
    return dict(branches(op, dtype))[name]


ALL = [
    pytest.param(op, dtype, name, id=f"{op}-{name_of(dtype)}-{name}")
    for op in TABLE
    for dtype in KERNEL_FLOATS
    for name, _ in branches(op, dtype)
]
TOGETHER = [
    ("vic_cluster", torch.float32, "sample 0"),
    ("vic_cluster", torch.bfloat16, "offsets"),
    ("vic_cluster", torch.bfloat16, "beyond float32"),
    ("vic_cluster", torch.bfloat16, "positions in float64"),
    ("vic_cluster_varlen", torch.bfloat16, "an empty sample, offsets"),
]


@pytest.mark.parametrize(("op", "dtype", "name"), ALL)
def test_is_right(op: str, dtype: torch.dtype, name: str) -> None:
    args, kwargs = drawn(op, dtype, name)
    verify(op, args, kwargs, launch(op, *args, **kwargs), "triton")


@pytest.mark.parametrize(("op", "dtype", "name"), TOGETHER)
def test_one_launch_gives_the_same_bits(op: str, dtype: torch.dtype, name: str) -> None:
    args, kwargs = drawn(op, dtype, name)
    assert_same_bits(as_one_launch(op, *args, **kwargs), launch(op, *args, **kwargs))
