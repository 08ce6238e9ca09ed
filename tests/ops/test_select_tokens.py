"""select_tokens: the truth in plain Python, then the kernel against the reference."""

import math

import pytest
import torch
from support import FLOATS, assert_batch_invariant, assert_exact, assert_right, call, layouts, name_of, reference

INF, NAN = math.inf, math.nan
ROWS = {
    "one": [3.0],
    "two tied": [1.0, 1.0],
    "ties": [2.0, 1.0, 2.0, 1.0, 0.0, 1.0],
    "all equal": [5.0] * 7,
    "signed zeros": [0.0, -0.0, 0.0, -0.0],
    "infinities": [INF, 1.0, -INF, INF, -INF, 0.0],
    "NaN is worse than inf": [NAN, INF, NAN, -INF, INF, 1.0],
    "negative NaN": [-NAN, 1.0, NAN, -INF],
    "all NaN": [NAN] * 5,
    "tiny and huge": [6e-8, -6e-8, 6e4, -6e4, 0.0],
}


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_chooses_what_the_truth_chooses(dtype: torch.dtype, row: list[float], largest: bool) -> None:
    scores = torch.tensor(row, dtype=dtype)
    for k in range(len(row) + 1):
        assert_right("select_tokens", scores, k, largest=largest)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("shape", [(1,), (3, 2), (2, 31), (0, 5), (4, 0), (2, 576), (1, 2880)], ids=str)
def test_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype, largest: bool) -> None:
    scores = torch.randint(-9, 9, shape).to(dtype) if shape[-1] == 31 else torch.randn(shape).to(dtype)
    n = shape[-1]
    for k in {0, 1, n // 3, n - 1, n} & set(range(n + 1)):
        index = assert_exact("select_tokens", scores, k, largest=largest)
        assert index.shape == (*shape[:-1], k)


def test_every_layout_gives_the_same() -> None:
    scores = torch.randn(3, 40)
    want = reference("select_tokens", scores, 11)
    for name, view in layouts(scores):
        assert torch.equal(call("select_tokens", view, 11), want), name
    zero_stride = torch.tensor([[1.0]]).expand(2, 6)
    assert call("select_tokens", zero_stride, 3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_batch_and_threads_change_nothing(dtype: torch.dtype) -> None:
    assert_batch_invariant("select_tokens", [torch.randn(5, 200).to(dtype)], 33, samples=5)
