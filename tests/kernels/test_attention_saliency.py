"""The Triton kernels of attention_saliency against the float64 reference."""

import math

import pytest
import torch
from launchers import assert_batch_invariant, both, kernel_of, launch
from support import LOW_PRECISION, layouts, name_of
from torch import Tensor

DTYPES = (torch.float32, *LOW_PRECISION)


@pytest.fixture(params=["scores kept", "scores computed twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "scores computed twice":
        monkeypatch.setattr(kernel_of("attention_saliency"), "STORED_ROWS", 0)
    return request.param


def assert_close(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """The tolerance is derived in tests/ops/test_attention_saliency.py."""
    got, want = both("attention_saliency", query, key, mask, scale=scale, repeat=True)
    rtol, d = 0.0, query.shape[-1]
    if query.numel() and key.numel():
        longest = [float(t.double().nan_to_num(0, 0, 0).norm(dim=-1).amax()) for t in (query, key)]
        dot = min(longest[0] * longest[1] * (d**-0.5 if scale is None else abs(scale)), 1e3)
        rtol = 2 * 2.0**-24 * (dot * (d / 16 + 6) + 8)
    torch.testing.assert_close(got, want, rtol=rtol, atol=1e-37, equal_nan=True)
    return got


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name_of)
@pytest.mark.parametrize(
    "shape",
    [
        ((), 1, 1, 1, 1, 1),
        ((), 2, 1, 3, 5, 4),
        ((2,), 4, 2, 2, 70, 80),
        ((1,), 3, 3, 1, 150, 96),
        ((1,), 4, 2, 9, 65, 256),
        ((0,), 2, 1, 1, 3, 4),
        ((1,), 2, 2, 0, 4, 4),
        ((1,), 2, 2, 1, 0, 4),
    ],
    ids=str,
)
def test_is_close_to_the_reference(shape: tuple, dtype: torch.dtype, masked: bool, way: str) -> None:
    batch, hq, hkv, m, n, d = shape
    query, key = (torch.randn(*batch, hq, m, d) * 2).to(dtype), torch.randn(*batch, hkv, n, d).to(dtype)
    assert_close(query, key, torch.rand(*batch, m, n) < 0.5 if masked else None)


@pytest.mark.parametrize("scale", [0.3, -2.0, 0.0])
def test_scales(scale: float, way: str) -> None:
    assert_close(torch.randn(4, 3, 5), torch.randn(2, 70, 5), scale=scale)


def test_many_tiles_of_statistics(way: str) -> None:
    query, key = torch.randn(1, 1, 8), torch.randn(1, 1200, 8)
    key[0, 1100] *= 10
    assert_close(query, key)


def test_equal_keys_share_equally_and_exactly(way: str) -> None:
    key = torch.randn(2, 1, 16).expand(2, 8, 16)
    assert launch("attention_saliency", torch.randn(4, 2, 16), key).tolist() == [1.0] * 8


def test_one_overwhelming_key_takes_all(way: str) -> None:
    query, key = torch.ones(1, 1, 4), torch.zeros(1, 5, 4)
    key[0, 3] = 1e30
    assert launch("attention_saliency", query, key).tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]
    key[0, 3] = -1e30
    assert launch("attention_saliency", query, key).tolist() == [0.25, 0.25, 0.25, 0.0, 0.25]


def test_a_masked_out_row_and_a_masked_key(way: str) -> None:
    query, key = torch.randn(2, 3, 2, 8), torch.randn(2, 3, 66, 8)
    mask = torch.ones(2, 2, 66, dtype=torch.bool)
    mask[0], mask[1, 0], mask[1, 1, 4], mask[1, 1, 64:] = False, False, False, False
    got = assert_close(query, key, mask)
    assert got[0].tolist() == [0.0] * 66
    assert got[1, 4] == 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_nan_spoils_its_row_and_masked_nan_does_not(dtype: torch.dtype, way: str) -> None:
    query, key = torch.randn(2, 2, 8).to(dtype), torch.randn(2, 70, 8).to(dtype)
    key[0, 3, 1] = math.nan
    assert assert_close(query, key).isnan().all()
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[:, 3] = False
    assert assert_close(query, key, mask).isfinite().all()
    query[1, 0, 0] = math.nan
    mask[0] = False
    assert assert_close(query, key, mask).isfinite().all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_infinite_scores_do_what_softmax_does(bad: float, way: str) -> None:
    query, key = torch.ones(1, 1, 4), torch.randn(1, 70, 4)
    key[0, 2, 0] = bad
    assert_close(query, key)
    key[:, :64] = bad  # a whole tile
    assert_close(query, key)
    key[:] = bad
    assert_close(query, key)


def test_every_layout_gives_the_same(way: str) -> None:
    query, key = torch.randint(-2, 3, (2, 4, 3, 16)).float(), torch.randint(-2, 3, (2, 2, 30, 16)).float()
    mask = torch.rand(2, 3, 30) < 0.5
    want = launch("attention_saliency", query, key, mask)
    for views in (layouts(query), layouts(key), layouts(mask)):
        for name, view in views:
            args = [view if view.shape == t.shape else t for t in (query, key, mask)]
            assert torch.equal(launch("attention_saliency", *args), want), name


@pytest.mark.parametrize("m", [1, 2])
def test_a_batch_changes_no_bit(m: int, way: str) -> None:
    query, key, mask = torch.randn(2, 8, m, 32), torch.randn(2, 8 // m, 70, 32), torch.rand(2, m, 70) < 0.7
    assert_batch_invariant("attention_saliency", [query, key, mask])
