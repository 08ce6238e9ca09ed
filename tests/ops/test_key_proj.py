"""key_proj and key_proj_norms: a linear layer, a norm, and the RMSNorm folded in."""

import math
from typing import Any

import pytest
import torch
from support import (
    FLOATS,
    assert_batch_invariant,
    assert_right,
    assert_same_bits,
    both,
    call,
    layouts,
    name_of,
    reference,
    tensors,
    unit_roundoff,
)
from torch import Tensor

HEADS = ("l2", "mean")


def inputs(
    n: int, width: int, out: int, dtype: torch.dtype, batch: tuple[int, ...] = (), bias: bool = True
) -> list[Any]:
    hidden = torch.randn(*batch, n, width).to(dtype)
    weight = (torch.randn(out, width) / max(1, width) ** 0.5).to(dtype)
    return [hidden, weight, torch.randn(out).to(dtype) if bias else None]


def key_error(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What float32 sums of C products may add up to, times four for a bias and blocking: [..., N, H*d]."""
    width = hidden.shape[-1]
    products = hidden.double().abs() @ weight.double().abs().T
    if bias is not None:
        products = products + bias.double().abs()
    eps = 2.0**-53 if hidden.dtype == torch.float64 else 2.0**-24
    return 4 * eps * max(4.0, width**0.5) * products


def assert_norms(
    got: Tensor, want: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: Any = 1.0
) -> None:
    """The errors of a token's keys bound the error of their norm (triangle inequality); keys may round to the input
    dtype."""
    slack = key_error(hidden, weight, bias).norm(dim=-1) * scale
    bound = slack + (unit_roundoff(hidden.dtype) + 2.0**-22) * want.double() * 2
    assert torch.all((got.double() - want.double()).abs() <= bound), (got, want, bound)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_is_a_linear_layer_and_equation_4(dtype: torch.dtype, with_bias: bool, heads: str) -> None:
    hidden, weight, bias = inputs(5, 7, 6, dtype, bias=with_bias)
    rms = torch.rand(7).to(dtype) + 0.5
    options = dict(num_heads=3, heads=heads)
    assert_right("key_proj", hidden, weight, bias, **options)
    assert_right("key_proj_norms", hidden, weight, bias, **options)
    assert_right("key_proj_norms", hidden, weight, bias, rms, rms_eps=1e-2, **options)


SHAPES = [
    # batch, N, C, H*d, H
    ((), 1, 1, 1, 1),
    ((), 2, 16, 8, 2),
    ((2,), 5, 33, 30, 3),
    ((1,), 288, 256, 256, 4),
    ((2,), 9, 40, 880, 5),  # more columns than a block of the CPU kernel has
    ((3,), 17, 100, 64, 1),
    ((0,), 4, 8, 8, 2),
    ((2,), 0, 8, 8, 2),
]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_key_proj_is_close_to_the_reference(shape: tuple, dtype: torch.dtype, with_bias: bool, heads: str) -> None:
    batch, n, width, out, num_heads = shape
    hidden, weight, bias = inputs(n, width, out, dtype, batch, with_bias)
    (keys, norms), (want_keys, want_norms) = both("key_proj", hidden, weight, bias, num_heads=num_heads, heads=heads)
    assert keys.shape == (*batch, num_heads, n, out // num_heads) and keys.transpose(-3, -2).is_contiguous()
    slack = key_error(hidden, weight, bias).unflatten(-1, (num_heads, out // num_heads)).transpose(-3, -2)
    bound = slack + 2.1 * unit_roundoff(dtype) * (want_keys.double().abs() + slack) + 1e-7 * (dtype == torch.float16)
    assert torch.all((keys.double() - want_keys.double()).abs() <= bound)
    assert_norms(norms, want_norms, hidden, weight, bias)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_rms", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_key_proj_norms_are_close_to_the_reference(
    shape: tuple, dtype: torch.dtype, with_rms: bool, with_bias: bool, heads: str
) -> None:
    batch, n, width, out, num_heads = shape
    hidden, weight, bias = inputs(n, width, out, dtype, batch, with_bias)
    rms = (torch.rand(width) + 0.5).to(dtype) if with_rms else None
    got, want = both("key_proj_norms", hidden, weight, bias, rms, rms_eps=1e-5, num_heads=num_heads, heads=heads)
    if rms is None:
        assert_norms(got, want, hidden, weight, bias)
        return
    # x * rms_weight may be rounded to the input dtype before the projection: one more roundoff per product.
    rstd = (hidden.double().square().mean(-1) + 1e-5).rsqrt()
    products = ((hidden.double() * rms.double()).abs() @ weight.double().abs().T).norm(dim=-1)
    loose = hidden.double() * rms.double() * rstd[..., None]
    slack = key_error(loose, weight.double(), None if bias is None else bias.double()).norm(dim=-1) * 2.0**29
    slack = slack + unit_roundoff(dtype) * products * rstd * 2
    bound = slack + (unit_roundoff(dtype) + 2.0**-22) * want.double() * 2
    assert torch.all((got.double() - want.double()).abs() <= bound)


@pytest.mark.slow
def test_llama_width_once() -> None:
    hidden, weight, _ = inputs(288, 4096, 1024, torch.float32, (1,), False)
    rms = torch.rand(4096) + 0.5
    keys, norms = call("key_proj", hidden, weight, None, num_heads=8)
    (_, want), lone = (
        reference("key_proj", hidden, weight, None, num_heads=8),
        call("key_proj_norms", hidden, weight, num_heads=8),
    )
    assert_norms(norms, want, hidden, weight, None)
    assert_norms(lone, want, hidden, weight, None)
    torch.testing.assert_close(keys, torch.nn.functional.linear(hidden, weight).view(1, 288, 8, 128).transpose(1, 2))
    folded = call("key_proj_norms", hidden, weight, None, rms, num_heads=8)
    want = reference("key_proj_norms", hidden, weight, None, rms, num_heads=8)
    torch.testing.assert_close(folded, want, rtol=1e-5, atol=0)  # 4096 float32 products per key, 1024 keys


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("magnitude", [1e30, 1e-30])
def test_huge_and_tiny_hidden_states(magnitude: float, heads: str) -> None:
    hidden, weight, _ = inputs(6, 24, 12, torch.float32, bias=False)
    hidden = hidden * magnitude
    got, want = both("key_proj_norms", hidden, weight, num_heads=3, heads=heads)
    assert_norms(got, want, hidden, weight, None)
    (_, norms), (_, want) = both("key_proj", hidden, weight, num_heads=3, heads=heads)
    assert_norms(norms, want, hidden, weight, None)
    rms = torch.rand(24) + 0.5
    folded, want = both("key_proj_norms", hidden, weight, None, rms, rms_eps=0.0, num_heads=3, heads=heads)
    torch.testing.assert_close(folded, want, rtol=1e-5, atol=0)  # the scale drops out


@pytest.mark.parametrize("op", ["key_proj", "key_proj_norms"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_nan_and_inf_stay_in_their_row(op: str, dtype: torch.dtype) -> None:
    hidden, weight, bias = inputs(6, 20, 8, dtype)
    hidden[1, 3], hidden[4, 0], hidden[5, 19] = math.nan, math.inf, -math.inf
    got, want = both(op, hidden, weight, bias, num_heads=2)
    got, want = (got[1], want[1]) if op == "key_proj" else (got, want)
    assert got.isfinite().tolist() == want.isfinite().tolist() == [True, False, True, True, False, False]
    assert got[1].isnan() and got[4].isinf() and got[5].isinf()


def test_a_row_of_zeros_has_norm_zero_or_the_norm_of_the_bias() -> None:
    hidden, weight, bias = inputs(3, 8, 4, torch.float32)
    hidden[1] = 0
    rms = torch.ones(8)
    assert call("key_proj_norms", hidden, weight, None, rms, num_heads=2)[1] == 0
    assert call("key_proj_norms", hidden, weight, None, rms, rms_eps=0.0, num_heads=2).isfinite()[0]
    torch.testing.assert_close(call("key_proj_norms", hidden, weight, bias, rms, num_heads=2)[1], bias.norm())


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_whole_numbers_are_exact_in_every_layout(dtype: torch.dtype) -> None:
    hidden = torch.randint(-3, 4, (2, 9, 16)).to(dtype)
    weight = torch.randint(-2, 3, (12, 16)).to(dtype)
    bias = torch.randint(-3, 4, (12,)).to(dtype)
    want = reference("key_proj", hidden, weight, bias, num_heads=3)
    for name, view in layouts(hidden):
        got = call("key_proj", view, weight, bias, num_heads=3)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), name
        assert torch.equal(call("key_proj_norms", view, weight, bias, num_heads=3), want[1]), name
    for name, view in layouts(weight):
        assert torch.equal(call("key_proj_norms", hidden, view, bias, num_heads=3), want[1]), name
    wide_bias = torch.stack([bias, bias + 1], dim=1)[:, 0]
    assert torch.equal(call("key_proj_norms", hidden, weight, wide_bias, num_heads=3), want[1])
    one = hidden[:, :1].expand(2, 5, 16)
    assert torch.equal(call("key_proj_norms", one, weight, bias, num_heads=3), want[1][:, :1].expand(2, 5))


# The contract's dtypes: float64 goes to the library's GEMM, which sums in another order for more rows on AMD's CPUs.
@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype != torch.float64], ids=name_of)
@pytest.mark.parametrize("op", ["key_proj", "key_proj_norms"])
def test_a_batch_and_threads_change_nothing(op: str, dtype: torch.dtype) -> None:
    hidden, weight, bias = inputs(70, 48, 32, dtype, (3,))
    if op == "key_proj":
        assert_batch_invariant(op, [hidden], weight, bias, samples=3, num_heads=2)
    else:
        rms = torch.rand(48).to(dtype)
        assert_batch_invariant(op, [hidden], weight, bias, rms, samples=3, num_heads=2)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("op", ["key_proj", "key_proj_norms"])
@pytest.mark.parametrize(("n", "width", "out"), [(5, 13, 4), (3, 159, 64), (3, 206, 46), (70, 49, 34)])
def test_a_place_in_memory_changes_nothing(n: int, width: int, out: int, op: str, heads: str) -> None:
    """Samples of odd sizes lie across cache lines, each otherwise, and a BLAS may sum them otherwise."""
    hidden, weight, bias = inputs(n, width, out, torch.float32, (1,))
    want = tensors(call(op, hidden, weight, bias, num_heads=2, heads=heads))
    for got in (
        call(op, hidden.expand(7, n, width).contiguous(), weight, bias, num_heads=2, heads=heads),
        call(op, dict(layouts(hidden))["unaligned"], weight, bias, num_heads=2, heads=heads),
    ):
        for t, one in zip(tensors(got), want, strict=True):
            assert_same_bits(t, one.expand(t.shape))


def test_the_two_ops_agree_on_the_norms() -> None:
    hidden, weight, bias = inputs(40, 64, 32, torch.float32)
    _, norms = call("key_proj", hidden, weight, bias, num_heads=4)
    lone = call("key_proj_norms", hidden, weight, bias, num_heads=4)
    torch.testing.assert_close(norms, lone, rtol=1e-6, atol=0)
    assert_same_bits(lone, call("key_proj_norms", hidden, weight, bias, num_heads=4))
