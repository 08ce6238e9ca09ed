"""Small calls of every op that reach every kernel, dtype and branch of dispatch."""

from collections.abc import Iterator
from typing import Any

import torch
from segments import plan
from sequences import sequence

from vitcop_kernels.testing.op import Arguments
from vitcop_kernels.testing.table import TABLE

Branch = tuple[str, Arguments]


def branches(op: str, dtype: torch.dtype) -> Iterator[Branch]:
    """The samples of the table, and what they leave out. To the clustering float16 is bfloat16 but for its loads and
    products: one sample."""
    once = dtype == torch.float16 and op in ONE_LAUNCH
    for k, sample in enumerate(TABLE[op].samples(dtype)):
        if k == 0 or not once:
            yield f"sample {k}", sample
    if once:
        return
    yield from _MORE.get(op, lambda dtype: iter(()))(dtype)


def _attention(dtype: torch.dtype) -> Iterator[Branch]:
    for rows in ("one", "many"):
        m, d = (1, 64) if rows == "one" else (600, 16)  # over 1,024 rows are computed twice
        query, key = torch.randn(1, 2, m, d).to(dtype), torch.randn(1, 2 if m == 1 else 1, 70, d).to(dtype)
        yield f"{rows} rows", ((query, key), {})
        yield f"{rows} rows, mask", ((query, key, torch.rand(1, m, 70) < 0.7), {})


def _plans(dtype: torch.dtype) -> Iterator[Branch]:
    for quota in ("exact", "floor", "released"):
        yield (
            f"{quota}, whole clusters",
            ((torch.randint(0, 90, (100,)), torch.randn(100).to(dtype), 90, 40), {"quota": quota}),
        )
    yield "8 warps", ((torch.randint(0, 21, (288,)), torch.randn(288).to(dtype), 21, 77), {})


def _selections(dtype: torch.dtype) -> Iterator[Branch]:
    yield "8 warps", ((torch.randn(1000).to(dtype), 77), {})
    yield "pieces", ((torch.randn(9000).to(dtype), 77), {"largest": True})


def _expansions(dtype: torch.dtype) -> Iterator[Branch]:
    del dtype  # indices only
    for merging in (False, True):
        args, shape = sequence(300, 200, 60, merging, 5, 3)
        yield f"8 warps, {merging=}", (tuple(args), shape)


def _sequences(dtype: torch.dtype) -> Iterator[Branch]:
    x, csr = torch.randn(1, 30, 40).to(dtype), plan(30, 9, 1)
    given = [torch.randn(1, 30, 16).to(dtype), torch.randn(1, 30, 16).to(dtype), torch.arange(30)[None]]
    yield "companions", ((x, given, *csr), {"merge": "mean"})


def _projections(dtype: torch.dtype) -> Iterator[Branch]:
    hidden, weight = torch.randn(70, 128).to(dtype), (torch.randn(160, 128) / 11).to(dtype)
    yield "even width", ((hidden, weight), {"num_heads": 2})
    yield "even width, mean, bias", ((hidden, weight, torch.randn(160).to(dtype)), {"num_heads": 2, "heads": "mean"})


def _clusters(dtype: torch.dtype) -> Iterator[Branch]:
    x = torch.randn(1, 40, 24).to(dtype)
    yield "offsets", ((x + 100, torch.rand(40, 2), 8.0, 0.5, 7), {})
    yield "beyond float32", ((x.float().mul(2.0**60).to(dtype), torch.rand(40, 2), 8.0 * 2.0**60, 0.5, 7), {})
    if dtype == torch.bfloat16:
        yield "positions in float64", ((x, torch.rand(40, 3).double(), 8.0, 0.5, 7), {"root_delta": "max"})
        yield "released cosine", ((x, torch.rand(40, 2), 1.0, 0.5, 7), {"semantics": "released", "metric": "cosine"})
        yield "large tile", ((torch.randn(1, 400, 64).to(dtype), torch.rand(400, 2), 8.0, 0.5, 60), {})


def _packed(dtype: torch.dtype) -> Iterator[Branch]:
    cu = torch.tensor([0, 7, 7, 41, 42], dtype=torch.int32)
    x, places = torch.randn(42, 24).to(dtype), torch.rand(42, 2)
    yield "an empty sample", ((x, places, cu, 36, 8.0, 0.5, 6), {"root_delta": "max"})
    yield "an empty sample, offsets", ((x + 100, places, cu, 36, 8.0, 0.5, 6), {"root_delta": "max"})


_MORE: dict[str, Any] = {
    "attention_saliency": _attention,
    "plan_tokens": _plans,
    "select_tokens": _selections,
    "expand_plan": _expansions,
    "compact_sequence": _sequences,
    "key_proj": _projections,
    "key_proj_norms": _projections,
    "vic_cluster": _clusters,
    "vic_cluster_varlen": _packed,
}
ONE_LAUNCH = ("vic_cluster", "vic_cluster_varlen")  # that may also be one cooperative launch
