"""Good calls of every op, small ones, for tests that hold for all ops alike."""

from collections.abc import Iterator
from typing import Any

import torch

Call = tuple[tuple[Any, ...], dict[str, Any]]


def plan(n: int, batch: int = 0) -> list[torch.Tensor]:
    """perm, offsets, anchors, merged of a plan that merges every other pair."""
    size = max(1, 3 * n // 4)
    labels, scores = torch.arange(n) // 4, torch.rand(n)
    csr = torch.ops.vitcop_reference.plan_tokens(labels, scores, n, size)
    return [t.expand(batch, *t.shape).contiguous() if batch else t for t in csr]


def plan_for(n: int, batch: int) -> list[torch.Tensor]:
    """The same in the order of expand_plan: anchors, perm, offsets, merged."""
    perm, offsets, anchors, merged = plan(n, batch)
    return [anchors, perm, offsets, merged]


def samples(op: str, dtype: torch.dtype = torch.float32) -> Iterator[Call]:
    def r(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[0, 9:] = False
    counts = torch.tensor([2, 5])
    if op == "key_norms":
        yield (r(2, 3, 7, 4),), {}
        yield (r(2, 7, 3, 4).transpose(1, 2),), dict(heads="mean")
        yield (r(3, 7, 4),), {}
    elif op == "key_proj":
        yield (r(2, 7, 6), r(8, 6)), dict(num_heads=2)
        yield (r(7, 6), r(8, 6), r(8)), dict(num_heads=4, heads="mean")
    elif op == "key_proj_norms":
        yield (r(2, 7, 6), r(8, 6)), dict(num_heads=2)
        yield (r(7, 6), r(8, 6), r(8), r(6)), dict(num_heads=4, heads="mean", rms_eps=1e-5)
    elif op == "attention_saliency":
        yield (r(2, 4, 3, 8), r(2, 2, 9, 8)), {}
        yield (r(4, 3, 8), r(4, 9, 8), torch.rand(3, 9) < 0.7), dict(scale=0.5)
    elif op == "select_tokens":
        yield (r(2, 9), 4), {}
        yield (r(9), 9), dict(largest=True)
    elif op == "plan_tokens":
        for quota in ("exact", "floor", "released"):
            yield (torch.randint(0, 4, (2, 12)), r(2, 12), 4, 7), dict(quota=quota)
        yield (torch.randint(0, 4, (12,), dtype=torch.int32), r(12), 4, 40), dict(quota="floor", fill=False)
    elif op == "segment_mean":
        yield (r(2, 8, 5), *plan(8, 2)[:2]), {}
        yield (r(8, 5), *plan(8)), dict(merge="anchor_plus_mean")
    elif op == "expand_plan":
        slots = torch.arange(8) + 2
        yield (slots.expand(2, 8), *plan_for(8, 2), torch.ones(2, 13, dtype=torch.bool)), dict(num_slots=13, out_len=11)
        yield (slots, torch.tensor([1, 4])), dict(num_slots=12, out_len=6)
    elif op == "compact_sequence":
        yield (r(2, 8, 5), [r(1, 8, 4), torch.arange(16).view(2, 8)], *plan(8, 2)[:3]), {}
        yield (r(8, 5), [r(8, 2, 2)], *plan(8)), dict(merge="anchor_plus_mean")
    elif op == "segment_mean_backward":
        yield (r(2, 6, 5), *plan(8, 2)[:2]), {}
        yield (r(6, 5), *plan(8)), dict(merge="anchor_plus_mean")
    elif op == "vic_cluster":
        yield (r(2, 16, 5), torch.rand(16, 2), 3.0, 0.5, 4), {}
        yield (r(2, 16, 5), torch.rand(2, 16, 2), 3.0, 0.5, 5, valid, counts), dict(semantics="released")
        yield (r(16, 5), None, 3.0, 0.5, 4), dict(metric="cosine", density="knn", assign="nearest", root_delta="max")
    elif op == "vic_cluster_varlen":
        cu = torch.tensor([0, 5, 5, 16], dtype=torch.int32)
        yield (r(16, 5), torch.rand(16, 2), cu, 11, 3.0, 0.5, 4), {}
        yield (
            (r(16, 5), None, cu.long(), 12, 3.0, 0.5, 4, torch.tensor([1, 2, 3])),
            dict(semantics="released", density="knn"),
        )
    else:
        raise NotImplementedError(f"{op}: expected samples of every registered op")
