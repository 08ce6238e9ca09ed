"""The Triton kernel of key_norms against the float64 reference."""

import math

import pytest
import torch
from launchers import assert_batch_invariant, both
from support import LOW_PRECISION, layouts, name_of
from torch import Tensor

HEADS = ("l2", "mean")
DTYPES = (torch.float32, *LOW_PRECISION)


def assert_close(keys: Tensor, heads: str) -> Tensor:
    """To the rounding of a float32 sum of H*d squares in at least 16 partial sums, see tests/ops/test_key_norms.py."""
    got, want = both("key_norms", keys, heads=heads, repeat=True)
    rtol = 2.0**-24 * (keys.shape[-3] * keys.shape[-1] / 16 + 8)
    torch.testing.assert_close(got, want, rtol=rtol, atol=2.0**-149, equal_nan=True)
    return got


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 5, 7), (1, 40, 3, 130), (4, 9, 64), (1, 2, 3, 300), (0, 2, 3, 4), (2, 2, 0, 8)], ids=str
)
def test_is_close_to_the_reference(shape: tuple[int, ...], dtype: torch.dtype, heads: str) -> None:
    assert_close((torch.randn(shape) * 3 + 1).to(dtype), heads)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("magnitude", [1e30, 1e-30, 3e38, 1e-38, 1e-42, 0.0])
def test_huge_and_tiny_keys_neither_overflow_nor_vanish(magnitude: float, heads: str) -> None:
    keys = torch.full((2, 9, 40), magnitude)
    keys[:, 0, 1:] = 0
    keys[:, 3] *= -1
    keys[:, 5] = 1.0
    assert_close(keys, heads)
    assert_close(keys.bfloat16(), heads)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_nan_and_inf_stay_in_their_token(dtype: torch.dtype, heads: str) -> None:
    keys = torch.randn(2, 6, 19).to(dtype)
    keys[0, 1, 3], keys[1, 3, 18], keys[0, 4, 0] = math.nan, math.inf, -math.inf
    keys[:, 5, 2], keys[1, 5, 3] = math.inf, math.nan
    norms = assert_close(keys, heads)
    assert norms.isnan().tolist() == [False, True, False, False, False, True]
    assert norms.isinf().tolist() == [False, False, False, True, True, False]


def test_opposite_infinities_have_no_mean() -> None:
    keys = torch.tensor([[[math.inf, 1.0]], [[-math.inf, 1.0]]])
    assert_close(keys, "mean")
    assert_close(keys, "l2")


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_every_layout_gives_the_same_whole_numbers(dtype: torch.dtype, heads: str) -> None:
    keys = torch.randint(-4, 5, (2, 2, 5, 12)).to(dtype)
    for name, view in [*layouts(keys), ("cache", keys.transpose(1, 2).contiguous().transpose(1, 2))]:
        got, want = both("key_norms", view, heads=heads)
        assert torch.equal(got, want), name


@pytest.mark.parametrize("heads", HEADS)
def test_a_batch_changes_no_bit(heads: str) -> None:
    assert_batch_invariant("key_norms", [torch.randn(3, 4, 7, 33)], heads=heads)
