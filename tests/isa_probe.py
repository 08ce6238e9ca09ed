"""A compact run of every op against the reference; `tests/ops/test_isa.py` runs it once per instruction set.

The instruction set is chosen when the native module is loaded, so each needs a process of its own.
"""

import sys

import torch
from clusters import certified, exact, grid, whole
from support import LOW_PRECISION, OPS, assert_exact, assert_same_bits, both, call, native_isa, threads

from vitcop_kernels.testing.ops._segments import plan


def close(op: str, rtol: float, atol: float, *args: object, **options: object) -> None:
    got, want = both(op, *args, **options)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


def probe(dtype: torch.dtype) -> None:
    rounding = torch.finfo(dtype).eps
    for n, width in ((1, 1), (7, 5), (33, 130), (100, 64)):
        keys = torch.randint(-4, 5, (2, 3, n, width)).to(dtype)
        for heads in ("l2", "mean"):
            close("key_norms", 1e-5, 0.0, keys, heads=heads)
        hidden, weight = torch.randint(-3, 4, (2, n, width)).to(dtype), torch.randint(-2, 3, (12, width)).to(dtype)
        close("key_proj_norms", 1e-5, 0.0, hidden, weight, num_heads=3)
        query = torch.randint(-2, 3, (2, 6, 2, width)).to(dtype)
        close("attention_saliency", 1e-4, 1e-30, query, keys, torch.rand(2, 2, n) < 0.8, scale=0.1)
        csr = plan(n, 2)
        for merge in ("mean", "anchor_plus_mean"):
            close("segment_mean", 2 * rounding, 1e-5, hidden, *csr, merge=merge)
        assert_exact("select_tokens", keys[:, 0, :, 0], n // 2, largest=True)
        assert_exact("plan_tokens", torch.randint(0, 5, (2, n)), keys[:, 0, :, 0], 5, 1 + n // 2)
        for semantics in ("paper", "released"):
            exact(
                torch.stack([whole(n, width)] * 2).to(dtype),
                grid(n),
                1.5 * width**0.5,
                0.5,
                1 + n // 7,
                semantics=semantics,
            )
            features = (torch.randn(2, n, width) + 3).to(dtype)
            certified(features, grid(n), 0.5 * width**0.5, 0.6, 1 + n // 7, semantics=semantics)
        certified(features, None, 0.5, torch.inf, 1 + n // 7, metric="cosine", density="knn")
        certified((torch.randn(1, n, width) + 200).to(dtype), grid(n), 8.0, 0.6, 1 + n // 7)
        strange = features.clone()
        strange[0, 0, 0], strange[1, n - 1, width - 1] = torch.nan, torch.inf
        whole_batch = call("vic_cluster", strange, grid(n), 8.0, 0.6, 1)
        with threads(1):
            assert_same_bits(call("vic_cluster", strange, grid(n), 8.0, 0.6, 1), whole_batch)
        assert_same_bits([t[1] for t in whole_batch], call("vic_cluster", strange[1], grid(n), 8.0, 0.6, 1))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(2)
    for dtype in (torch.float32, *LOW_PRECISION):
        probe(dtype)
    print(native_isa(), len(OPS), file=sys.stdout)
