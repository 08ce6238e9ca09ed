"""key_norms: the truth in plain Python, then the kernel against the float64 reference."""

import math

import pytest
import torch
from support import (
    FLOATS,
    assert_batch_invariant,
    assert_exact,
    assert_right,
    both,
    call,
    expanded,
    layouts,
    name_of,
    reference,
)
from torch import Tensor

HEADS = ("l2", "mean")


def tolerance(keys: Tensor) -> float:
    """Relative error of a float32 sum of H*d squares in at least 16 partial sums, at worst one half ulp per addition;
    the
    root halves it and rounds once more."""
    terms = keys.shape[-3] * keys.shape[-1]
    return 2.0**-24 * (terms / 16 + 8)


def assert_close(keys: Tensor, heads: str) -> Tensor:
    got, want = both("key_norms", keys, heads=heads)
    torch.testing.assert_close(got, want, rtol=tolerance(keys), atol=0.0, equal_nan=True)
    return got


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 2), (2, 7, 5)], ids=str)
def test_is_equation_4(shape: tuple[int, ...], dtype: torch.dtype, heads: str) -> None:
    keys = torch.randn(shape).to(dtype)
    assert_right("key_norms", keys, heads=heads)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 3, 5, 7),
        (1, 4, 33, 63),
        (2, 2, 17, 130),
        (4, 1, 64),
        (2, 3, 5, 17),
        (0, 2, 3, 4),
        (2, 2, 0, 8),
        (1, 32, 288, 128),
    ],
    ids=str,
)
def test_is_close_to_the_reference(shape: tuple[int, ...], dtype: torch.dtype, heads: str) -> None:
    keys = (torch.randn(shape) * 3 + 1).to(dtype)
    norms = assert_close(keys, heads)
    assert norms.shape == (*shape[:-3], shape[-2])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("magnitude", [1e30, 1e-30, 3e38, 1e-38, 1e-42, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_huge_and_tiny_keys_neither_overflow_nor_vanish(dtype: torch.dtype, magnitude: float, heads: str) -> None:
    keys = torch.full((2, 9, 40), magnitude).to(dtype)
    keys[:, 0, 1:] = 0
    keys[:, 3] *= -1
    got, want = both("key_norms", keys, heads=heads)
    # A norm below the normal range keeps an absolute error of one subnormal step.
    torch.testing.assert_close(got, want, rtol=tolerance(keys), atol=2.0**-149)


def test_one_row_may_hold_both_huge_and_tiny_values() -> None:
    keys = torch.tensor([1e30, 1e-30, 1.0, -1e30]).reshape(1, 1, 4)
    assert_close(keys, "l2")
    assert_close(torch.tensor([3e-30, 4e-30]).reshape(1, 1, 2), "l2")


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
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
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_whole_numbers_are_exact_in_every_layout(dtype: torch.dtype, heads: str) -> None:
    keys = torch.randint(-4, 5, (3, 2, 20, 24)).to(dtype)
    want = reference("key_norms", keys, heads=heads)
    for name, view in layouts(keys):
        assert torch.equal(call("key_norms", view, heads=heads), want), name
    cache = keys.permute(0, 2, 1, 3).contiguous().transpose(1, 2)  # a KV cache stored [B, N, H, d]
    assert torch.equal(call("key_norms", cache, heads=heads), want)
    same = expanded(keys[0], 4)
    assert torch.equal(call("key_norms", same, heads=heads), want[:1].expand(4, -1))
    assert_exact("key_norms", keys[0, :1, :, :1].expand(2, 20, 24), heads=heads)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("width", [24, 33, 128])
def test_a_cache_in_the_order_of_tokens_gives_the_same_bits(width: int, heads: str) -> None:
    """Its heads are one long row, and summed as one only where that is the same."""
    keys = torch.randn(2, 3, 40, width)
    by_token = keys.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(call("key_norms", by_token, heads=heads), call("key_norms", keys, heads=heads))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_batch_and_threads_change_nothing(dtype: torch.dtype, heads: str) -> None:
    assert_batch_invariant("key_norms", [torch.randn(3, 4, 150, 33).to(dtype)], samples=3, heads=heads)
