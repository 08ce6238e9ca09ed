"""attention_saliency: softmax rows summed in plain Python, then the kernel against the float64 reference."""

import math

import pytest
import torch
from support import FLOATS, assert_batch_invariant, assert_right, both, call, expanded, layouts, name_of
from torch import Tensor

SHAPES = [
    # batch, Hq, Hkv, M, N, d
    ((), 1, 1, 1, 1, 1),
    ((), 2, 1, 3, 5, 4),
    ((2,), 4, 2, 2, 9, 8),
    ((1,), 6, 2, 1, 100, 33),
    ((1,), 16, 16, 1, 577, 64),
    ((2,), 8, 2, 5, 288, 128),
    ((2,), 8, 2, 13, 20, 16),  # 52 rows of a head, in tiles of 32
    ((0,), 2, 1, 1, 3, 4),
    ((1,), 2, 2, 0, 4, 4),
    ((1,), 2, 2, 1, 0, 4),
]


def inputs(shape: tuple, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    batch, hq, hkv, m, n, d = shape
    return (torch.randn(*batch, hq, m, d) * scale).to(dtype), torch.randn(*batch, hkv, n, d).to(dtype)


def tolerance(query: Tensor, key: Tensor, scale: float | None = None) -> float:
    """A float32 dot product errs by d half ulps of |q||k| at worst; through exp that is a relative error of a weight,
    and
    twice that of its share of the row. Eight ulps more for exp and the sums, and half an ulp for each of the N/16
    additions of a row's weights in 16 lanes."""
    if query.numel() == 0 or key.numel() == 0:
        return 0.0
    d = query.shape[-1]
    factor = d**-0.5 if scale is None else abs(scale)
    longest = [t.double().nan_to_num(0, 0, 0).norm(dim=-1).amax() for t in (query, key)]
    dot = min(longest[0] * longest[1] * factor, 1e3)  # beyond that the softmax has saturated
    return 2 * 2.0**-24 * (float(dot) * (d / 16 + 6) + 8 + key.shape[-2] / 32)


def assert_close(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    got, want = both("attention_saliency", query, key, mask, scale=scale)
    torch.testing.assert_close(got, want, rtol=tolerance(query, key, scale), atol=1e-37, equal_nan=True)
    return got


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3, -2.0, 0.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_sums_the_softmax_rows(dtype: torch.dtype, scale: float | None, masked: bool) -> None:
    query, key = inputs(((), 4, 2, 3, 7, 5), dtype)
    mask = torch.rand(3, 7) < 0.6
    mask[1] = False  # a row that may attend to nothing contributes nothing
    used = mask if masked else None
    assert_right("attention_saliency", query, key, used, scale=scale)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_close_to_the_reference(shape: tuple, dtype: torch.dtype, masked: bool) -> None:
    batch, hq, _, m, n, _ = shape
    query, key = inputs(shape, dtype, 2.0)
    mask = torch.rand(*batch, m, n) < 0.5 if masked else None
    saliency = assert_close(query, key, mask)
    assert saliency.shape == (*batch, n)
    if not masked and n:
        torch.testing.assert_close(saliency.sum(-1), torch.full_like(saliency.sum(-1), hq * m), rtol=1e-5, atol=0)


def test_equal_keys_share_equally_and_exactly() -> None:
    query = torch.randn(4, 2, 16)
    key = torch.randn(2, 1, 16).expand(2, 8, 16)
    assert call("attention_saliency", query, key).tolist() == [1.0] * 8


def test_one_overwhelming_key_takes_all() -> None:
    query, key = torch.ones(1, 1, 4), torch.zeros(1, 5, 4)
    key[0, 3] = 1e30
    assert_close(query, key)
    assert call("attention_saliency", query, key).tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]
    key[0, 3] = -1e30
    assert call("attention_saliency", query, key).tolist() == [0.25, 0.25, 0.25, 0.0, 0.25]


def test_a_masked_out_row_and_a_masked_key() -> None:
    query, key = torch.randn(2, 3, 2, 8), torch.randn(2, 3, 6, 8)
    mask = torch.ones(2, 2, 6, dtype=torch.bool)
    mask[0], mask[1, 0], mask[1, 1, 4] = False, False, False
    got = assert_close(query, key, mask)
    assert got[0].tolist() == [0.0] * 6
    assert got[1, 4] == 0.0
    torch.testing.assert_close(got[1].sum(), torch.tensor(3.0))


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_nan_spoils_its_row_and_masked_nan_does_not(dtype: torch.dtype) -> None:
    query, key = inputs(((), 2, 2, 2, 6, 8), dtype)
    key[0, 3, 1] = math.nan
    assert assert_close(query, key).isnan().all()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 3] = False
    assert assert_close(query, key, mask).isfinite().all()
    query[1, 0, 0] = math.nan
    mask[0] = False
    assert assert_close(query, key, mask).isfinite().all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_infinite_scores_do_what_softmax_does(bad: float) -> None:
    query, key = torch.ones(1, 1, 4), torch.randn(1, 6, 4)
    key[0, 2, 0] = bad
    assert_close(query, key)
    key[:] = bad
    assert_close(query, key)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_every_layout_gives_the_same(dtype: torch.dtype) -> None:
    query, key = torch.randint(-2, 3, (2, 4, 3, 16)).to(dtype), torch.randint(-2, 3, (2, 2, 30, 16)).to(dtype)
    mask = torch.rand(2, 3, 30) < 0.5
    want = call("attention_saliency", query, key, mask)
    for name, view in layouts(query):
        assert torch.equal(call("attention_saliency", view, key, mask), want), name
    for name, view in layouts(key):
        assert torch.equal(call("attention_saliency", query, view, mask), want), name
    for name, view in layouts(mask):
        assert torch.equal(call("attention_saliency", query, key, view), want), name
    same = call("attention_saliency", expanded(query[0], 2), expanded(key[0], 2), expanded(mask[0], 2))
    assert torch.equal(same, want[:1].expand(2, -1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_batch_and_threads_change_nothing(dtype: torch.dtype, masked: bool) -> None:
    query, key = inputs(((3,), 8, 4, 2, 130, 32), dtype)
    mask = torch.rand(3, 2, 130) < 0.7 if masked else None
    assert_batch_invariant("attention_saliency", [query, key, mask], samples=3)
