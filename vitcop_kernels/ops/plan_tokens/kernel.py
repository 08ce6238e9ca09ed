"""plan_tokens on a GPU, in two launches and without a sort.

1. count_kernel, spread over the device: the rank of every token within its cluster and its place in cluster order, by
   counting; the size and summed score of every cluster.
2. plan_kernel (plan.py), one program per sample: quotas, elites, and the CSR by running sums.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._radix import order_key
from vitcop_kernels._triton import cdiv, launch, next_power_of_2, widen

from .plan import plan_kernel

TOKENS = 16  # tokens ranked by one program
CLUSTERS = 16  # clusters summed by one program
MAX_BLOCK = 1024  # tokens or clusters at a time in the second launch
QUOTAS = {"exact": 0, "floor": 1, "released": 2}


@triton.jit
def _labels(p_labels, o_n, num_tokens, num_labels, stride_ln, RELEASED: tl.constexpr):
    """Cluster of each token; without one: num_labels, or cluster 0 of the released quota (its label l is l + 1)."""
    b_label = tl.load(p_labels + o_n.to(tl.int64) * stride_ln, mask=o_n < num_tokens, other=-1).to(tl.int64)
    m_out = (b_label < 0) | (b_label >= num_labels)
    if RELEASED:
        return tl.where(m_out, 0, b_label + 1).to(tl.int32)
    return tl.where(m_out, num_labels, b_label).to(tl.int32)


@triton.jit
def _keys(p_scores, o_n, num_tokens, stride_sn):
    key = order_key(tl.load(p_scores + o_n.to(tl.int64) * stride_sn, mask=o_n < num_tokens, other=0.0), False)
    return (key - 0x80000000).to(tl.int32)


@triton.jit
def count_kernel(
    p_labels,
    p_scores,
    p_cluster,
    p_rank,
    p_place,
    p_size,
    p_total,
    num_tokens,
    num_labels,
    num_clusters,
    stride_lb,
    stride_ln,
    stride_sb,
    stride_sn,
    RELEASED: tl.constexpr,
    TOTALS: tl.constexpr,
    TOKENS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_t, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_labels += i_b * stride_lb
    p_scores += i_b * stride_sb
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    if i_t < token_tiles:
        o_i = i_t * TOKENS + tl.arange(0, TOKENS)
        m_i = o_i < num_tokens
        b_label = _labels(p_labels, o_i, num_tokens, num_labels, stride_ln, RELEASED)
        b_key = _keys(p_scores, o_i, num_tokens, stride_sn)
        b_rank = tl.zeros((TOKENS,), tl.int32)
        b_place = tl.zeros((TOKENS,), tl.int32)
        for j in range(0, num_tokens, BLOCK):
            o_j = j + tl.arange(0, BLOCK)
            m_j = (o_j < num_tokens)[None, :]
            b_other = _labels(p_labels, o_j, num_tokens, num_labels, stride_ln, RELEASED)[None, :]
            b_other_key = _keys(p_scores, o_j, num_tokens, stride_sn)[None, :]
            m_before = o_j[None, :] < o_i[:, None]
            m_same = m_j & (b_other == b_label[:, None])
            m_better = (b_other_key < b_key[:, None]) | ((b_other_key == b_key[:, None]) & m_before)
            b_rank += tl.sum((m_same & m_better).to(tl.int32), 1)
            m_first = (m_j & (b_other < b_label[:, None])) | (m_same & m_before)
            b_place += tl.sum(m_first.to(tl.int32), 1)
        o_out = i_b * num_tokens + o_i
        tl.store(p_cluster + o_out, b_label, mask=m_i)
        tl.store(p_rank + o_out, b_rank, mask=m_i)
        tl.store(p_place + o_out, b_place, mask=m_i)
    else:
        o_c = (i_t - token_tiles) * CLUSTERS + tl.arange(0, CLUSTERS)
        b_size = tl.zeros((CLUSTERS,), tl.int32)
        b_total = tl.zeros((CLUSTERS, BLOCK), tl.float64)
        for j in range(0, num_tokens, BLOCK):
            o_j = j + tl.arange(0, BLOCK)
            b_label = _labels(p_labels, o_j, num_tokens, num_labels, stride_ln, RELEASED)
            m_in = (o_j < num_tokens)[None, :] & (b_label[None, :] == o_c[:, None])
            b_size += tl.sum(m_in.to(tl.int32), 1)
            if TOTALS:
                b_score = tl.load(p_scores + o_j.to(tl.int64) * stride_sn, mask=o_j < num_tokens, other=0.0)
                b_total += tl.where(m_in, widen(b_score).to(tl.float64)[None, :], 0.0)
        tl.store(p_size + i_b * num_clusters + o_c, b_size, mask=o_c < num_clusters)
        if TOTALS:
            tl.store(p_total + i_b * num_clusters + o_c, tl.sum(b_total, 1), mask=o_c < num_clusters)


def plan_tokens(
    labels: Tensor, scores: Tensor, num_clusters: int, budget: int, *, quota: str = "exact", fill: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if scores.dtype == torch.float64:
        return torch.ops.vitcop_reference.plan_tokens(labels, scores, num_clusters, budget, quota=quota, fill=fill)
    if labels.dim() == 1:
        plan = plan_tokens(labels[None], scores[None], num_clusters, budget, quota=quota, fill=fill)
        return plan[0][0], plan[1][0], plan[2][0], plan[3][0]

    batch, num_tokens = labels.shape
    segments = min(budget, num_tokens)

    def empty(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty((batch, size), dtype=dtype, device=labels.device)

    perm, offsets, anchors = (empty(size, torch.int64) for size in (num_tokens, segments + 1, segments))
    merged = empty(segments, torch.bool)
    if num_tokens == 0:
        return perm, offsets.zero_(), anchors, merged
    clusters = num_clusters + (quota == "released")
    config = _config(num_tokens, clusters, segments, quota, fill)
    cluster, rank, place = empty(num_tokens), empty(num_tokens), empty(num_tokens)
    size, total = empty(clusters), empty(clusters if config["TOTALS"] else 0, torch.float64)
    launch(
        count_kernel,
        (cdiv(num_tokens, TOKENS) + cdiv(clusters, CLUSTERS), batch),
        labels,
        scores,
        cluster,
        rank,
        place,
        size,
        total,
        num_tokens,
        num_clusters,
        clusters,
        *labels.stride(),
        *scores.stride(),
        RELEASED=quota == "released",
        TOTALS=config["TOTALS"],
        TOKENS=TOKENS,
        CLUSTERS=CLUSTERS,
        BLOCK=128,
        num_warps=4,
    )
    scratch, keys = empty(4 * clusters + 3 * num_tokens + 2), empty(max(num_tokens, clusters), torch.int64)
    launch(
        plan_kernel,
        (batch,),
        scores,
        cluster,
        rank,
        place,
        size,
        total,
        scratch,
        keys,
        perm,
        offsets,
        anchors,
        merged.view(torch.uint8),
        num_tokens,
        clusters,
        segments,
        *scores.stride(),
        **config,
        num_warps=_num_warps(config["BLOCK"]),
    )
    return perm, offsets, anchors, merged


def _config(num_tokens: int, clusters: int, segments: int, quota: str, fill: bool) -> dict[str, Any]:
    whole = clusters > segments  # may there be more clusters than budget?
    return {
        "QUOTA": QUOTAS[quota],
        "FILL": quota == "floor" and fill,
        "WHOLE": whole,
        "TOTALS": whole or quota == "released",
        "ROUND_BITS": max(clusters.bit_length(), 1),
        "BLOCK": min(max(next_power_of_2(max(num_tokens, clusters)), 128), MAX_BLOCK),
    }


def _num_warps(block: int) -> int:
    return 4 if block <= 256 else 8


def aot_specs() -> list[AotSpec]:
    """The plan reads scores in the fill of "floor" alone: elsewhere one dtype stands for all."""
    specs = []
    arrays = ("p_cluster", "p_rank", "p_place", "p_size")
    sizes = ("num_tokens", "num_labels", "num_clusters", "stride_lb", "stride_sb")
    block = {"TOKENS": TOKENS, "CLUSTERS": CLUSTERS, "BLOCK": 128}
    for dtype, labels in (("fp32", "i64"), ("fp32", "i32"), ("bf16", "i64"), ("fp16", "i64")):
        pointers = {"p_labels": f"*{labels}", "p_scores": f"*{dtype}", **dict.fromkeys(arrays, "*i32")}
        quotas = ((False, False), (False, True), (True, True))
        for released, totals in quotas if (dtype, labels) == ("fp32", "i64") else quotas[1:2]:
            quota = "released" if released else "totals" if totals else "no totals"
            specs.append(
                AotSpec(
                    f"plan_tokens:count[{dtype},{labels},{quota}]",
                    count_kernel,
                    {**pointers, "p_total": "*fp64", **dict.fromkeys(sizes, "i32")},
                    {"stride_ln": 1, "stride_sn": 1, "RELEASED": released, "TOTALS": totals, **block},
                )
            )
    longs = dict.fromkeys(("p_keys", "p_perm", "p_offsets", "p_anchors"), "*i64")
    counts = dict.fromkeys(("num_tokens", "num_clusters", "num_segments", "stride_sb"), "i32")
    pointers = {**dict.fromkeys((*arrays, "p_scratch"), "*i32"), "p_total": "*fp64", **longs, "p_merged": "*u8"}
    for quota, fill in (("exact", True), ("floor", True), ("floor", False), ("released", True)):
        for num_tokens, clusters, segments in ((100, 100, 70), (200, 20, 70), (288, 52, 77), (2880, 300, 200)):
            if not fill and num_tokens > 200:
                continue  # the fill leaves a part out: a smaller program
            for dtype in ("fp32", "bf16", "fp16") if quota == "floor" and fill and num_tokens == 288 else ("fp32",):
                config = _config(num_tokens, clusters, segments, quota, fill)
                details = [dtype, quota] + ["no fill"] * (not fill) + ["whole clusters"] * config["WHOLE"]
                specs.append(
                    AotSpec(
                        f"plan_tokens:plan[{','.join(details)},block={config['BLOCK']}]",
                        plan_kernel,
                        {"p_scores": f"*{dtype}", **pointers, **counts},
                        {"stride_sn": 1, **config},
                        num_warps=_num_warps(config["BLOCK"]),
                    )
                )
    return specs
