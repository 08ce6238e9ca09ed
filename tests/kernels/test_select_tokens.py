"""The Triton kernel of select_tokens: the reference's indices, exactly."""

import math

import pytest
import torch
from launchers import assert_batch_invariant, assert_exact, kernel_of
from support import LOW_PRECISION, layouts, name_of

DTYPES = (torch.float32, *LOW_PRECISION)
WORST = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 1.0, -1.0]


@pytest.mark.parametrize("largest", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_every_k_of_infinities_nans_zeros_and_ties(dtype: torch.dtype, largest: bool) -> None:
    scores = torch.tensor(WORST + WORST).to(dtype)[torch.randperm(2 * len(WORST))]
    for k in range(0, len(scores) + 1, 3):
        assert_exact("select_tokens", scores, k, largest=largest)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(1,), (3, 128), (2, 577), (1, 1300), (0, 5), (2, 0)], ids=str)
def test_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    n = shape[-1]
    for k in sorted({0, min(1, n), n // 3, n}):
        for largest in (False, True):
            assert_exact("select_tokens", torch.randn(shape).to(dtype), k, largest=largest)


@pytest.mark.parametrize("k", (1, 200, 777, 1000))
def test_rows_longer_than_a_block(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    for name in ("MAX_BLOCK", "PIECE"):
        monkeypatch.setattr(kernel_of("select_tokens"), name, 128)
    assert_exact("select_tokens", torch.randn(2, 1000), k, repeat=True)
    assert_exact("select_tokens", torch.randint(0, 3, (2, 1000)).float(), k, largest=True)


def test_keys_that_differ_in_one_byte_only() -> None:
    for shift in (0, 8, 16, 20):
        bits = 0x40000000 + (torch.randperm(200) << shift)
        assert_exact("select_tokens", bits.to(torch.int32).view(torch.float32), 77)


def test_layouts_and_batches() -> None:
    scores = torch.randint(0, 9, (3, 40)).float()
    for _, view in layouts(scores):
        assert_exact("select_tokens", view, 11)
    assert_batch_invariant("select_tokens", [scores], 11)
