"""Every error message, word for word, from the kernels, the references and the fakes."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import OPS, op_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

INF, NAN = math.inf, math.nan


def f(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def i64(*shape: int) -> Tensor:
    return f(*shape, dtype=torch.int64)


def boolean(*shape: int) -> Tensor:
    return f(*shape, dtype=torch.bool)


FLOAT = "expected float32, bfloat16, float16 or float64"
DIVISOR = "key.shape[-3] (heads): expected a divisor of the query heads (4)"
NEEDED = 'expected a tensor with merge="anchor_plus_mean", got None'
POSITIONS = "positions: expected [N, P], or [B, N, P] with batched features"
HALF = torch.float16
# op -> good arguments by name, options, then per bad call: what changes, the type, the text after "<op>: ".
Case = tuple[dict[str, Any], type[Exception], str]
TABLE: dict[str, tuple[dict[str, Any], dict[str, Any], list[Case]]] = {
    "key_norms": (
        dict(keys=f(2, 3, 5, 4)),
        {},
        [
            (dict(keys=i64(2, 3, 5, 4)), TypeError, f"keys: {FLOAT}, got int64"),
            (dict(keys=f(5, 4)), ValueError, "keys: expected [B, H, N, d] or [H, N, d], got [5, 4]"),
            (dict(keys=f(1, 1, 1, 1, 1)), ValueError, "keys: expected [B, H, N, d] or [H, N, d], got [1, 1, 1, 1, 1]"),
            (dict(keys=f(2, 0, 5, 4)), ValueError, "keys.shape[-3] (heads): expected at least 1, got 0"),
            (dict(heads="max"), ValueError, 'heads: expected "l2" or "mean", got "max"'),
        ],
    ),
    "attention_saliency": (
        dict(query=f(2, 4, 3, 8), key=f(2, 2, 5, 8), mask=None),
        {},
        [
            (dict(query=i64(2, 4, 3, 8)), TypeError, f"query: {FLOAT}, got int64"),
            (dict(query=f(3, 8)), ValueError, "query: expected [B, Hq, M, d] or [Hq, M, d], got [3, 8]"),
            (dict(key=f(2, 2, 5, 8, dtype=HALF)), TypeError, "key: expected the dtype of query (float32), got float16"),
            (dict(key=f(2, 5, 8)), ValueError, "key: expected [B, Hkv, N, d] or [Hkv, N, d], as query, got [2, 5, 8]"),
            (dict(key=f(2, 2, 5, 7)), ValueError, "key: expected [2, 2, 5, 8], got [2, 2, 5, 7]"),
            (dict(key=f(3, 2, 5, 8)), ValueError, "key: expected [2, 2, 5, 8], got [3, 2, 5, 8]"),
            (dict(key=f(2, 3, 5, 8)), ValueError, f"{DIVISOR}, got 3"),
            (dict(key=f(2, 0, 5, 8)), ValueError, f"{DIVISOR}, got 0"),
            (dict(scale=INF), ValueError, "scale: expected a finite number, got inf"),
            (dict(scale=NAN), ValueError, "scale: expected a finite number, got nan"),
            (dict(mask=f(2, 3, 5)), TypeError, "mask: expected bool, got float32"),
            (dict(mask=boolean(2, 5, 3)), ValueError, "mask: expected [2, 3, 5], got [2, 5, 3]"),
            (dict(mask=boolean(3, 5)), ValueError, "mask: expected [2, 3, 5], got [3, 5]"),
        ],
    ),
    "plan_tokens": (
        dict(labels=i64(2, 9), scores=f(2, 9), num_clusters=3, budget=4),
        {},
        [
            (dict(labels=f(2, 9)), TypeError, "labels: expected int64 or int32, got float32"),
            (dict(labels=i64(1, 2, 9)), ValueError, "labels: expected [B, N] or [N], got [1, 2, 9]"),
            (dict(scores=i64(2, 9)), TypeError, f"scores: {FLOAT}, got int64"),
            (dict(scores=f(2, 8)), ValueError, "scores: expected [2, 9], got [2, 8]"),
            (dict(scores=f(9)), ValueError, "scores: expected [2, 9], got [9]"),
            (dict(num_clusters=0), ValueError, "num_clusters: expected at least 1, got 0"),
            (dict(budget=0), ValueError, "budget: expected at least 1, got 0"),
            (dict(budget=-3), ValueError, "budget: expected at least 1, got -3"),
            (dict(quota="fair"), ValueError, 'quota: expected "exact" or "floor" or "released", got "fair"'),
        ],
    ),
    "select_tokens": (
        dict(scores=f(2, 9), k=3),
        {},
        [
            (dict(scores=i64(2, 9)), TypeError, f"scores: {FLOAT}, got int64"),
            (dict(scores=f(1, 2, 9)), ValueError, "scores: expected [B, N] or [N], got [1, 2, 9]"),
            (dict(k=10), ValueError, "k: expected an integer in [0, 9], got 10"),
            (dict(k=-1), ValueError, "k: expected an integer in [0, 9], got -1"),
        ],
    ),
    "segment_mean": (
        dict(x=f(2, 9, 4), perm=i64(2, 9), offsets=i64(2, 6), anchors=None, merged=None),
        {},
        [
            (dict(x=i64(2, 9, 4)), TypeError, f"x: {FLOAT}, got int64"),
            (dict(x=f(9)), ValueError, "x: expected [B, N, C] or [N, C], got [9]"),
            (dict(x=f(2, 0, 4)), ValueError, "x.shape[-2] (tokens): expected at least 1, got 0"),
            (dict(perm=f(2, 9)), TypeError, "perm: expected int64, got float32"),
            (dict(perm=f(2, 9, dtype=torch.int32)), TypeError, "perm: expected int64, got int32"),
            (dict(perm=i64(2, 8)), ValueError, "perm: expected [2, 9], got [2, 8]"),
            (dict(offsets=f(2, 6)), TypeError, "offsets: expected int64, got float32"),
            (dict(offsets=i64(6)), ValueError, "offsets: expected [B, S+1] or [S+1], as perm, got [6]"),
            (dict(offsets=i64(2, 0)), ValueError, "offsets.shape[-1] (S+1): expected at least 1, got 0"),
            (dict(offsets=i64(3, 6)), ValueError, "offsets: expected [2, 6], got [3, 6]"),
            (dict(merge="sum"), ValueError, 'merge: expected "mean" or "anchor_plus_mean", got "sum"'),
            (dict(merge="anchor_plus_mean"), ValueError, f"anchors: {NEEDED}"),
            (dict(merge="anchor_plus_mean", anchors=i64(2, 5)), ValueError, f"merged: {NEEDED}"),
            (dict(anchors=f(2, 5)), TypeError, "anchors: expected int64, got float32"),
            (dict(anchors=i64(2, 6)), ValueError, "anchors: expected [2, 5], got [2, 6]"),
            (dict(merged=i64(2, 5)), TypeError, "merged: expected bool, got int64"),
            (dict(merged=boolean(5)), ValueError, "merged: expected [2, 5], got [5]"),
        ],
    ),
}  # fmt: skip

PROJECTION: list[Case] = [
    (dict(hidden=i64(2, 5, 6)), TypeError, f"hidden: {FLOAT}, got int64"),
    (dict(hidden=f(6)), ValueError, "hidden: expected [B, N, C] or [N, C], got [6]"),
    (dict(weight=f(8)), ValueError, "weight: expected [H*d, C], got [8]"),
    (dict(weight=f(8, 6, dtype=HALF)), TypeError, "weight: expected the dtype of hidden (float32), got float16"),
    (dict(weight=f(8, 5)), ValueError, "weight: expected [8, 6], got [8, 5]"),
    (dict(num_heads=0), ValueError, "num_heads: expected at least 1, got 0"),
    (dict(num_heads=3), ValueError, "num_heads: expected a divisor of weight.shape[0] (8), got 3"),
    (dict(weight=f(0, 6)), ValueError, "num_heads: expected a divisor of weight.shape[0] (0), got 2"),
    (dict(bias=f(8, dtype=HALF)), TypeError, "bias: expected the dtype of hidden (float32), got float16"),
    (dict(bias=f(7)), ValueError, "bias: expected [8], got [7]"),
    (dict(heads="sum"), ValueError, 'heads: expected "l2" or "mean", got "sum"'),
]
good, options, cases = TABLE["segment_mean"]
TABLE["compact_sequence"] = (
    dict(
        x=good["x"],
        companions=[f(1, 9, 4), i64(2, 9)],
        perm=good["perm"],
        offsets=good["offsets"],
        anchors=i64(2, 5),
        merged=None,
    ),
    options,
    [
        *(case for case in cases if not case[2].startswith("anchors: expected a tensor")),
        (
            dict(companions=[i64(2, 9), f(2, 8, 4)]),
            ValueError,
            "companions[1]: expected [2 or 1, 9, ...], got [2, 8, 4]",
        ),
        (dict(companions=[f(3, 9)]), ValueError, "companions[0]: expected [2 or 1, 9, ...], got [3, 9]"),
        (dict(companions=[f(9)]), ValueError, "companions[0]: expected [2 or 1, 9, ...], got [9]"),
        (
            dict(x=f(1, 9, 4), perm=i64(1, 9), offsets=i64(1, 6), anchors=i64(1, 5), companions=[f(2, 9)]),
            ValueError,
            "companions[0]: expected [1, 9, ...], got [2, 9]",
        ),
        (
            dict(companions=[f(2, 9, dtype=torch.complex64)]),
            TypeError,
            "companions[0]: expected a floating dtype, int64, int32 or bool, got complex64",
        ),
    ],
)
TABLE["segment_mean_backward"] = (
    dict(grad=f(2, 5, 4), perm=i64(2, 9), offsets=i64(2, 6), anchors=None, merged=None),
    {},
    [
        (dict(grad=i64(2, 5, 4)), TypeError, f"grad: {FLOAT}, got int64"),
        (dict(grad=f(5)), ValueError, "grad: expected [B, S, C] or [S, C], got [5]"),
        (dict(perm=i64(9)), ValueError, "perm: expected [B, N] or [N], as grad, got [9]"),
        (dict(perm=i64(2, 0)), ValueError, "perm.shape[-1] (tokens): expected at least 1, got 0"),
        (dict(perm=i64(3, 9)), ValueError, "perm: expected [2, 9], got [3, 9]"),
        (dict(offsets=i64(2, 5)), ValueError, "offsets: expected [2, 6], got [2, 5]"),
        *(case for case in cases if next(iter(case[0])) in ("merge", "anchors", "merged")),
    ],
)
TABLE["expand_plan"] = (
    dict(
        slots=torch.arange(9).repeat(2, 1),
        anchors=i64(2, 5),
        perm=i64(2, 9),
        offsets=i64(2, 6),
        merged=boolean(2, 5),
        valid=None,
    ),
    dict(num_slots=12, out_len=8),
    [
        (dict(slots=f(2, 9)), TypeError, "slots: expected int64, got float32"),
        (dict(slots=i64(2, 9, 1)), ValueError, "slots: expected [B, V] or [V], got [2, 9, 1]"),
        (dict(anchors=f(2, 5)), TypeError, "anchors: expected int64, got float32"),
        (dict(anchors=i64(5)), ValueError, "anchors: expected [B, S] or [S], as slots, got [5]"),
        (dict(anchors=i64(3, 5)), ValueError, "anchors: expected [2, 5], got [3, 5]"),
        (dict(num_slots=-1), ValueError, "num_slots: expected at least 0, got -1"),
        (dict(out_len=13), ValueError, "out_len: expected an integer in [0, 12], got 13"),
        (dict(perm=None), ValueError, "perm: expected a tensor with offsets, got None"),
        (dict(offsets=None), ValueError, "offsets: expected a tensor with perm, got None"),
        (dict(perm=i64(2, 8)), ValueError, "perm: expected [2, 9], got [2, 8]"),
        (dict(offsets=i64(2, 5)), ValueError, "offsets: expected [2, 6], got [2, 5]"),
        (dict(merged=i64(2, 5)), TypeError, "merged: expected bool, got int64"),
        (dict(valid=boolean(2, 9)), ValueError, "valid: expected [2, 12], got [2, 9]"),
    ],
)
TABLE["key_proj"] = (dict(hidden=f(2, 5, 6), weight=f(8, 6), bias=None), dict(num_heads=2), PROJECTION)
TABLE["key_proj_norms"] = (
    dict(hidden=f(2, 5, 6), weight=f(8, 6), bias=None, rms_weight=None),
    dict(num_heads=2),
    [
        *PROJECTION,
        (
            dict(rms_weight=f(6, dtype=HALF)),
            TypeError,
            "rms_weight: expected the dtype of hidden (float32), got float16",
        ),
        (dict(rms_weight=f(8)), ValueError, "rms_weight: expected [6], got [8]"),
        (dict(rms_eps=-1e-6), ValueError, "rms_eps: expected a finite number, at least 0, got -1e-06"),
        (dict(rms_eps=INF), ValueError, "rms_eps: expected a finite number, at least 0, got inf"),
        (dict(rms_eps=NAN), ValueError, "rms_eps: expected a finite number, at least 0, got nan"),
    ],
)

CLUSTERING: list[Case] = [
    (dict(d_c=0.0), ValueError, "d_c: expected a positive finite number, got 0"),
    (dict(d_c=-8.5), ValueError, "d_c: expected a positive finite number, got -8.5"),
    (dict(d_c=INF), ValueError, "d_c: expected a positive finite number, got inf"),
    (dict(d_c=NAN), ValueError, "d_c: expected a positive finite number, got nan"),
    (dict(tau=-0.6), ValueError, "tau: expected a number, at least 0 (inf: no spatial limit), got -0.6"),
    (dict(tau=NAN), ValueError, "tau: expected a number, at least 0 (inf: no spatial limit), got nan"),
    (dict(semantics="original"), ValueError, 'semantics: expected "paper" or "released", got "original"'),
    (dict(metric="l1"), ValueError, 'metric: expected "l2" or "cosine", got "l1"'),
    (dict(dist_scale=0.0), ValueError, "dist_scale: expected a number from 1e-100 to 1e100, got 0"),
    (dict(dist_scale=NAN), ValueError, "dist_scale: expected a number from 1e-100 to 1e100, got nan"),
    (dict(dist_scale=1e300), ValueError, "dist_scale: expected a number from 1e-100 to 1e100, got 1e+300"),
    (dict(density="kde"), ValueError, 'density: expected "gaussian" or "knn", got "kde"'),
    (dict(knn=0), ValueError, "knn: expected at least 1, got 0"),
    (dict(assign="soft"), ValueError, 'assign: expected "parent" or "nearest", got "soft"'),
    (dict(root_delta="zero"), ValueError, 'root_delta: expected "inf" or "max", got "zero"'),
]
TABLE["vic_cluster"] = (
    dict(features=f(2, 9, 4), positions=f(2, 9, 2), d_c=8.0, tau=0.6, num_centers=3, valid=None, center_counts=None),
    {},
    [
        *CLUSTERING,
        (dict(features=i64(2, 9, 4)), TypeError, f"features: {FLOAT}, got int64"),
        (dict(features=f(9)), ValueError, "features: expected [B, N, D] or [N, D], got [9]"),
        (dict(features=f(2, 0, 4)), ValueError, "features.shape[-2] (tokens): expected at least 1, got 0"),
        (dict(positions=i64(2, 9, 2)), TypeError, f"positions: {FLOAT}, got int64"),
        (dict(positions=f(9)), ValueError, f"{POSITIONS}, got [9]"),
        (dict(positions=f(2, 8, 2)), ValueError, "positions: expected [2, 9, 2], got [2, 8, 2]"),
        (dict(positions=f(1, 9, 2)), ValueError, "positions: expected [2, 9, 2], got [1, 9, 2]"),
        (dict(positions=f(8, 2)), ValueError, "positions: expected [9, 2], got [8, 2]"),
        (dict(features=f(9, 4)), ValueError, f"{POSITIONS}, got [2, 9, 2]"),
        (dict(num_centers=0), ValueError, "num_centers: expected an integer in [1, 9], got 0"),
        (dict(num_centers=10), ValueError, "num_centers: expected an integer in [1, 9], got 10"),
        (dict(valid=f(2, 9)), TypeError, "valid: expected bool, got float32"),
        (dict(valid=boolean(9)), ValueError, "valid: expected [2, 9], got [9]"),
        (dict(center_counts=f(2)), TypeError, "center_counts: expected int64 or int32, got float32"),
        (dict(center_counts=i64(3)), ValueError, "center_counts: expected [2], got [3]"),
    ],
)  # fmt: skip
TABLE["vic_cluster_varlen"] = (
    dict(
        features=f(9, 4), positions=f(9, 2), cu_seqlens=torch.tensor([0, 4, 9]), max_seqlen=5, d_c=8.0, tau=0.6,
        num_centers=3,
        center_counts=None,
    ),
    {},
    [
        *CLUSTERING,
        (dict(features=i64(9, 4)), TypeError, f"features: {FLOAT}, got int64"),
        (dict(features=f(2, 9, 4)), ValueError, "features: expected [T, D], got [2, 9, 4]"),
        (dict(features=f(0, 4)), ValueError, "features.shape[0] (tokens): expected at least 1, got 0"),
        (dict(positions=i64(9, 2)), TypeError, f"positions: {FLOAT}, got int64"),
        (dict(positions=f(1, 9, 2)), ValueError, "positions: expected [T, P], got [1, 9, 2]"),
        (dict(positions=f(8, 2)), ValueError, "positions: expected [9, 2], got [8, 2]"),
        (dict(cu_seqlens=f(3)), TypeError, "cu_seqlens: expected int32 or int64, got float32"),
        (dict(cu_seqlens=i64(1, 3)), ValueError, "cu_seqlens: expected [B+1], got [1, 3]"),
        (dict(cu_seqlens=i64(1)), ValueError, "cu_seqlens.shape[0] (B+1): expected at least 2, got 1"),
        (dict(max_seqlen=0), ValueError, "max_seqlen: expected at least 1, got 0"),
        (dict(num_centers=0), ValueError, "num_centers: expected an integer in [1, 5], got 0"),
        (dict(num_centers=6), ValueError, "num_centers: expected an integer in [1, 5], got 6"),
        (dict(center_counts=f(2)), TypeError, "center_counts: expected int64 or int32, got float32"),
        (dict(center_counts=i64(3)), ValueError, "center_counts: expected [2], got [3]"),
    ],
)  # fmt: skip


def bad_calls() -> Iterator[Any]:
    for op in OPS:
        for k, (change, error, text) in enumerate(TABLE[op][2]):
            yield pytest.param(op, change, error, f"{op}: {text}", id=f"{op}-{k}-{next(iter(change))}")


def arguments(op: str, change: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    good, options, _ = TABLE[op]
    args = [change.get(name, value) for name, value in good.items()]
    return args, options | {name: value for name, value in change.items() if name not in good}


@pytest.mark.parametrize("op", OPS)
def test_the_calls_that_the_bad_ones_vary_are_good(op: str) -> None:
    args, options = arguments(op, {})
    for namespace in ("vitcop", "vitcop_reference"):
        op_of(namespace, op)(*args, **options)


@pytest.mark.parametrize(("op", "change", "error", "text"), list(bad_calls()))
@pytest.mark.parametrize("where", ["vitcop", "vitcop_reference", "fake", "meta"])
def test_a_bad_argument_is_named_with_what_was_expected_and_what_came(
    op: str, change: dict[str, Any], error: type[Exception], text: str, where: str
) -> None:
    args, options = arguments(op, change)
    namespace = where if where.startswith("vitcop") else "vitcop"
    with pytest.raises(error) as caught:
        if where == "fake":
            with FakeTensorMode() as mode:
                op_of(namespace, op)(*tree_map_only(Tensor, mode.from_tensor, args), **options)
        else:
            meta = tree_map_only(Tensor, lambda t: t.to("meta"), args) if where == "meta" else args
            op_of(namespace, op)(*meta, **options)
    assert type(caught.value) is error
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("op", "argument", "other"),
    [
        ("attention_saliency", "key", "query"), ("plan_tokens", "scores", "labels"), ("segment_mean", "perm", "x"),
        ("segment_mean", "offsets", "x"), ("segment_mean_backward", "perm", "grad"),
        ("compact_sequence", "anchors", "x"), ("expand_plan", "anchors", "slots"), ("expand_plan", "perm", "slots"),
        ("key_proj", "weight", "hidden"), ("key_proj_norms", "weight", "hidden"),
        ("vic_cluster", "positions", "features"), ("vic_cluster_varlen", "positions", "features"),
        ("vic_cluster_varlen", "cu_seqlens", "features"),
    ],
)  # fmt: skip
def test_tensors_on_two_devices_are_refused(op: str, argument: str, other: str) -> None:
    args, options = arguments(op, {})
    names = list(TABLE[op][0])
    args[names.index(argument)] = args[names.index(argument)].to("meta")
    with pytest.raises(ValueError, match=f"^{op}: {argument}: expected the device of {other} \\(cpu\\), got meta$"):
        op_of("vitcop", op)(*args, **options)


MALFORMED = [[1, 4, 9], [0, 10, 9], [0, 6, 4, 9], [0, 4, 8], [0, 4, 10], [0, 9, 9], [-1, 4, 9]]


@pytest.mark.parametrize("cu", MALFORMED, ids=str)
def test_vic_cluster_varlen_refuses_malformed_cu_seqlens_in_the_kernel(cu: list[int]) -> None:
    from support import NATIVE_OPS

    if "vic_cluster_varlen" not in NATIVE_OPS:
        pytest.skip("the reference reads no value on the host, it clamps")
    for dtype in (torch.int32, torch.int64):
        with pytest.raises(ValueError, match=r"^vic_cluster_varlen: cu_seqlens: expected .*, got "):
            torch.ops.vitcop.vic_cluster_varlen(f(9, 4), None, torch.tensor(cu, dtype=dtype), 5, 8.0, 0.6, 3)
