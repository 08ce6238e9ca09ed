"""The Triton kernels of key_proj and key_proj_norms against the float64 reference."""

import math
from typing import Any

import pytest
import torch
from launchers import assert_batch_invariant, both
from support import LOW_PRECISION, layouts, name_of, unit_roundoff
from torch import Tensor

HEADS = ("l2", "mean")
DTYPES = (torch.float32, *LOW_PRECISION)


def inputs(n: int, width: int, out: int, dtype: torch.dtype, batch: tuple[int, ...] = ()) -> list[Any]:
    hidden = torch.randn(*batch, n, width).to(dtype)
    return [hidden, (torch.randn(out, width) / max(1, width) ** 0.5).to(dtype), torch.randn(out).to(dtype)]


def assert_close(hidden: Tensor, weight: Tensor, bias: Tensor | None, rms: Tensor | None = None, **kwargs: Any) -> Any:
    """Norms: within the norm of what float32 sums of C products may add up to (and, after an RMSNorm, the rounding of
    its rows to the dtype); keys: that, rounded once."""
    op = "key_proj_norms" if kwargs.pop("norms_only", True) else "key_proj"
    args = [hidden, weight, bias, rms] if op == "key_proj_norms" else [hidden, weight, bias]
    got, want = both(op, *args, repeat=True, **kwargs)
    x, eps = hidden.double(), 4 * 2.0**-24 * max(4.0, hidden.shape[-1] ** 0.5)
    if rms is not None:
        x = x * (x.square().mean(-1, keepdim=True) + kwargs.get("rms_eps", 1e-6)).rsqrt() * rms.double()
        eps += unit_roundoff(hidden.dtype)
    error = eps * (x.abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs()))
    if op == "key_proj":
        (keys, got), (want_keys, want) = got, want
        per_key = error.unflatten(-1, (kwargs["num_heads"], -1)).transpose(-3, -2)
        slack = per_key + 2 * unit_roundoff(hidden.dtype) * want_keys.double().abs() + 2.0**-25
        assert torch.all((keys.double() - want_keys.double()).abs() <= slack)
    assert torch.all((got.double() - want.double()).abs() <= error.norm(dim=-1) + 2.0**-20 * want.double())
    return got


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    ("batch", "n", "width", "out", "num_heads"),
    [
        ((), 1, 1, 1, 1),
        ((2,), 5, 33, 6, 3),
        ((1,), 70, 64, 160, 2),
        ((0,), 3, 4, 4, 2),
        ((1,), 0, 8, 4, 2),
        ((), 3, 0, 4, 2),
    ],
)
def test_is_close_to_the_reference(
    batch: tuple[int, ...], n: int, width: int, out: int, num_heads: int, dtype: torch.dtype, heads: str
) -> None:
    hidden, weight, bias = inputs(n, width, out, dtype, batch)
    assert_close(hidden, weight, bias, num_heads=num_heads, heads=heads, norms_only=False)
    assert_close(hidden, weight, None, num_heads=num_heads, heads=heads)
    if width:
        rms = (torch.rand(width) + 0.5).to(dtype)
        assert_close(hidden * 7, weight, bias, rms, num_heads=num_heads, heads=heads, rms_eps=0.1)


@pytest.mark.parametrize("block", [(128, 256, 8), (128, 128, 8), (64, 128, 4)], ids=str)
def test_every_tile(monkeypatch: pytest.MonkeyPatch, block: tuple[int, int, int]) -> None:
    from vitcop_kernels.ops.key_proj import gemm

    monkeypatch.setattr(gemm, "TILES", (block,))
    monkeypatch.setattr(gemm, "_device_facts", lambda device: (232448, False))
    hidden, weight, bias = inputs(130, 64, 260, torch.bfloat16)
    # The widest tile serves norms alone.
    assert_close(hidden, weight, bias, num_heads=4, norms_only=block[1] == 256)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("magnitude", [1e30, 1e-30, 1e-38, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_huge_and_tiny_keys_neither_overflow_nor_vanish(dtype: torch.dtype, magnitude: float, heads: str) -> None:
    hidden, weight, _ = inputs(5, 40, 12, dtype)
    hidden[2:] *= magnitude
    got, want = both("key_proj_norms", hidden, weight, None, None, num_heads=3, heads=heads)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2.0**-140)
    rms = torch.ones(40).to(dtype)
    got, want = both("key_proj_norms", hidden, weight, None, rms, num_heads=3, heads=heads, rms_eps=0.0)
    finite = want.isfinite()  # a row of zeros has no RMSNorm without an epsilon
    torch.testing.assert_close(got[finite], want[finite], rtol=4 * unit_roundoff(dtype) + 1e-5, atol=0)
    assert got[~finite].isnan().all()


@pytest.mark.parametrize("heads", HEADS)
def test_nan_and_inf_stay_in_their_token(heads: str) -> None:
    hidden, weight, bias = inputs(6, 20, 8, torch.float32)
    hidden[1, 3], hidden[4, 19] = math.nan, math.inf
    got, want = both("key_proj_norms", hidden, weight, bias, num_heads=1, heads=heads)
    assert got.isfinite().tolist() == want.isfinite().tolist() == [True, False, True, True, False, True]
    assert got[1].isnan() and got[4] == math.inf


def test_every_layout_gives_the_same_whole_numbers() -> None:
    hidden, weight = torch.randint(-3, 4, (2, 5, 12)).float(), torch.randint(-3, 4, (8, 12)).float()
    bias = torch.randint(-3, 4, (8,)).float()
    for views in (layouts(hidden), layouts(weight), layouts(bias)):
        for name, view in views:
            args = [view if view.shape == t.shape else t for t in (hidden, weight, bias)]
            for heads in HEADS:
                (keys, norms), (want_keys, want) = both("key_proj", *args, num_heads=2, heads=heads)
                assert torch.equal(keys, want_keys) and torch.equal(norms, want), name


@pytest.mark.parametrize("heads", HEADS)
def test_a_batch_changes_no_bit(heads: str) -> None:
    hidden, weight, bias = inputs(7, 40, 12, torch.bfloat16, (3,))
    for op in ("key_proj", "key_proj_norms"):
        assert_batch_invariant(op, [hidden], weight, bias, num_heads=3, heads=heads)
