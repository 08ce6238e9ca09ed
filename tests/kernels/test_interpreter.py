"""Where Triton's interpreter is not what a GPU is: pinned, so that it is noticed when it is mended."""

import pytest
import torch
import triton
import triton.language as tl
from launchers import DEVICE, INTERPRETED

from vitcop_kernels.testing.implementations import interpretable


@triton.jit
def widen(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at).to(tl.float32))


def widened(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty(x.shape, device=DEVICE)
    widen[(1,)](x.to(DEVICE), y, len(x))
    return y.cpu()


def test_bfloat16_is_widened_exactly_where_it_is_said_to_be() -> None:
    x = torch.tensor([1.5, -0.0, 2.0**-126, 3e38]).bfloat16()
    assert interpretable([x]) and torch.equal(widened(x), x.float())


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's fault alone")
def test_the_interpreter_misreads_subnormal_bfloat16() -> None:
    """Why the fuzzer leaves such cases out of it. Where this fails, `interpretable` has become needless."""
    x = torch.tensor([4e-39, 0.0]).bfloat16()
    assert not interpretable([x]) and interpretable([x.float()])
    assert not torch.equal(widened(x), x.float())
