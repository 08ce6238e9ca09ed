"""Empty dimensions and sizes beyond 2^31: no crash, no endless loop, the right answer. Most were fuzzed."""

import math

import pytest
import torch
from support import FLOATS, NATIVE_OPS, assert_same_bits, name_of, op_of
from torch import Tensor

NAMESPACES = ("vitcop", "vitcop_reference")
BIG = (2**31 + 1, 2**40, 2**62)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_projections_of_no_channels_are_the_bias(namespace: str, dtype: torch.dtype) -> None:
    hidden, weight, bias = torch.empty(3, 0, dtype=dtype), torch.empty(8, 0, dtype=dtype), torch.ones(8, dtype=dtype)
    for heads, norm in (("l2", math.sqrt(8)), ("mean", 2.0)):
        got = op_of(namespace, "key_proj_norms")(hidden, weight, bias, num_heads=2, heads=heads)
        assert got.tolist() == pytest.approx([norm] * 3, rel=1e-6)  # one rounding to float32
        assert not op_of(namespace, "key_proj_norms")(hidden, weight, num_heads=2, heads=heads).any()


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_attention_of_no_width_is_even(namespace: str, dtype: torch.dtype) -> None:
    query, key = torch.empty(2, 3, 0, dtype=dtype), torch.empty(2, 4, 0, dtype=dtype)
    assert op_of(namespace, "attention_saliency")(query, key).tolist() == [1.5] * 4  # 6 rows over 4 keys


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_tokens_without_features_are_duplicates(dtype: torch.dtype, metric: str) -> None:
    for namespace in NAMESPACES:
        labels, centers, parent, *_ = op_of(namespace, "vic_cluster")(
            torch.empty(2, 5, 0, dtype=dtype), None, 8.0, math.inf, 2, metric=metric
        )
        assert centers.tolist() == [[0, 1]] * 2
        assert labels.tolist() == [[0, 1, 0, 0, 0]] * 2
        assert parent.tolist() == [[-1, 0, 0, 0, 0]] * 2


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_an_upper_bound_of_the_lengths_may_be_loose(dtype: torch.dtype) -> None:
    features, cu = torch.randn(9, 4).to(dtype), torch.tensor([0, 4, 9])
    for namespace in NAMESPACES:
        op = op_of(namespace, "vic_cluster_varlen")
        tight = op(features, None, cu, 5, 1.0, math.inf, 3)
        for bound in (9, 2**40, 2**63 - 1):
            assert_same_bits(op(features, None, cu, bound, 1.0, math.inf, 3), tight, f"max_seqlen={bound}")
        more = op(features, None, cu, 2**40, 1.0, math.inf, 30)
        assert more[1].shape == (2, 30)
        assert (more[1][:, 5:] == -1).all()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(0, dtype=dtype).as_strided(shape, [1] * len(shape))


def i64(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int64)


@pytest.mark.parametrize("n", BIG)
def test_many_samples_without_tokens_are_no_work(n: int) -> None:
    weight = torch.ones(8, 4)
    keys, norms = torch.ops.vitcop.key_proj(empty(n, 0, 4), weight, num_heads=2)
    assert (keys.shape, norms.shape) == ((n, 2, 0, 4), (n, 0))
    for heads in ("l2", "mean"):
        assert torch.ops.vitcop.key_proj_norms(empty(n, 0, 4), weight, num_heads=2, heads=heads).shape == (n, 0)
    assert torch.ops.vitcop.key_norms(empty(n, 2, 0, 4)).shape == (n, 0)
    assert torch.ops.vitcop.attention_saliency(empty(n, 2, 0, 4), empty(n, 2, 0, 4)).shape == (n, 0)
    assert torch.ops.vitcop.select_tokens(empty(n, 0), 0).shape == (n, 0)


@pytest.mark.parametrize("n", [*BIG, 2**63 - 1])
def test_many_tokens_of_no_sample_are_no_work(n: int) -> None:
    assert torch.ops.vitcop.select_tokens(empty(0, n), n).shape == (0, n)
    assert torch.ops.vitcop.key_norms(empty(0, 1, n, 1)).shape == (0, n)
    assert torch.ops.vitcop.attention_saliency(empty(0, 1, 1, 1), empty(0, 1, n, 1)).shape == (0, n)
    perm, offsets, anchors, merged = torch.ops.vitcop.plan_tokens(i64(0, n), empty(0, n), 3, 5)
    assert (perm.shape, offsets.shape, anchors.shape, merged.shape) == ((0, n), (0, 6), (0, 5), (0, 5))
    assert torch.ops.vitcop.segment_mean(empty(0, n, 1), i64(0, n), i64(0, 3)).shape == (0, 2, 1)
    assert torch.ops.vitcop.segment_mean_backward(empty(0, 2, 1), i64(0, n), i64(0, 3)).shape == (0, n, 1)
    if n < 2**63 - 1:  # n + 1 boundaries
        assert torch.ops.vitcop.segment_mean_backward(empty(0, n, 1), i64(0, 3), i64(0, n + 1)).shape == (0, 3, 1)
        out = torch.ops.vitcop.expand_plan(i64(0, 2), i64(0, 1), num_slots=n, out_len=n)
        assert [tuple(t.shape) for t in out[:3]] == [(0, n), (0, n + 1), (0, n)]


def test_a_size_whose_successor_no_integer_holds_is_refused() -> None:
    n = 2**63 - 1
    with pytest.raises(ValueError, match="segment_mean_backward: offsets: expected"):
        torch.ops.vitcop.segment_mean_backward(empty(0, n, 1), i64(0, 3), i64(0, 4))
    with pytest.raises(ValueError, match="expand_plan: offsets: expected"):
        torch.ops.vitcop.expand_plan(i64(0, 2), i64(0, n), i64(0, 2), i64(0, 4), num_slots=4, out_len=2)
    with pytest.raises((RuntimeError, OverflowError)):
        torch.ops.vitcop.expand_plan(i64(0, 2), i64(0, 1), num_slots=n, out_len=n)


@pytest.mark.slow
@pytest.mark.skipif("key_norms" not in NATIVE_OPS, reason="the reference would copy the tokens to float64")
def test_tokens_times_width_beyond_2_to_the_31() -> None:
    """Rows of stride 0: 2^31 + 1024 elements in 4 KB. Small integers, so that every sum is exact."""
    n, width = 2**21 + 1, 1024
    row = torch.randint(-2, 3, (width,)).float()
    x = row.expand(n, width)
    assert x.numel() > 2**31
    norms = torch.ops.vitcop.key_norms(x[None])
    assert (norms == row.square().sum().sqrt()).all()
    saliency = torch.ops.vitcop.attention_saliency(row.view(1, 1, width), x[None])
    assert torch.allclose(saliency, torch.tensor(1.0 / n), rtol=1e-3, atol=0)  # a sum of n equal terms in float32
    perm, offsets = torch.arange(n), torch.tensor([0, 3, n])
    mean = torch.ops.vitcop.segment_mean(x, perm, offsets)
    assert torch.equal(mean, row.expand(2, width))
