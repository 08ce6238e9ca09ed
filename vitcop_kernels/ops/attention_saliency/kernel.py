"""attention_saliency on a GPU: softmax statistics per row and tile of keys, then the attention itself, summed.

Rows are the query rows that see one key head (the heads of its group, M rows each). Few rows keep their scores in
between; many rows compute them twice, so that memory stays linear in the tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import NAMES, UPCAST, cdiv, launch, next_power_of_2, product, widen

TILE_N = 64  # keys of one tile of statistics
STORED_ROWS = 1024  # up to so many rows over all heads keep their scores


@triton.jit
def _scores(
    p_query,
    p_key,
    p_mask,
    o_r,
    o_n,
    i_head,
    num_rows,
    group_m,
    num_tokens,
    head_dim,
    scale,
    stride_qh,
    stride_qm,
    stride_qd,
    stride_kn,
    stride_kd,
    stride_mm,
    stride_mn,
    HAS_MASK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Scaled scores [ROWS, BLOCK_N] of one key head and where they count; p_key points at the head."""
    i_m = o_r % group_m
    p_rows = (
        p_query
        + (i_head * (num_rows // group_m) + o_r // group_m).to(tl.int64) * stride_qh
        + i_m.to(tl.int64) * stride_qm
    )
    m_r, m_n = o_r < num_rows, o_n < num_tokens
    p_keys = p_key + o_n.to(tl.int64) * stride_kn
    b_score = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for d in range(0, head_dim, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        m_d = o_d < head_dim
        b_k = tl.load(
            p_keys[:, None] + o_d[None, :].to(tl.int64) * stride_kd, mask=m_n[:, None] & m_d[None, :], other=0.0
        )
        b_q = tl.load(
            p_rows[:, None] + o_d[None, :].to(tl.int64) * stride_qd, mask=m_r[:, None] & m_d[None, :], other=0.0
        )
        if ROWS == 1:
            b_score += tl.sum(product(widen(b_k), widen(b_q)), 1)[None, :]
        else:
            if UPCAST:
                b_q, b_k = widen(b_q), widen(b_k)
            b_score = tl.dot(b_q, tl.trans(b_k), b_score, input_precision="ieee")
    b_score *= scale
    m_allowed = m_r[:, None] & m_n[None, :]
    if HAS_MASK:
        p = p_mask + i_m[:, None].to(tl.int64) * stride_mm + o_n[None, :].to(tl.int64) * stride_mn
        m_allowed = m_allowed & (tl.load(p, mask=m_allowed, other=0) != 0)
    return tl.where(m_allowed, b_score, float("-inf")), m_allowed


@triton.jit
def statistics_kernel(
    p_query,
    p_key,
    p_mask,
    p_max,
    p_sum,
    p_scores,
    num_rows,
    group_m,
    num_tokens,
    head_dim,
    num_tiles,
    scale,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_mb,
    stride_mm,
    stride_mn,
    HAS_MASK: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Maximum and sum of exponentials of each row over one tile of keys; a sum of NaN poisons its row."""
    i_t, i_b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row_tiles = tl.cdiv(num_rows, ROWS)
    i_head = tl.program_id(1) // row_tiles
    o_r = tl.program_id(1) % row_tiles * ROWS + tl.arange(0, ROWS)
    o_n = i_t * BLOCK_N + tl.arange(0, BLOCK_N)
    num_heads = tl.num_programs(1) // row_tiles
    b_score, m_allowed = _scores(
        p_query + i_b * stride_qb,
        p_key + i_b * stride_kb + i_head.to(tl.int64) * stride_kh,
        p_mask + i_b * stride_mb,
        o_r,
        o_n,
        i_head,
        num_rows,
        group_m,
        num_tokens,
        head_dim,
        scale,
        stride_qh,
        stride_qm,
        stride_qd,
        stride_kn,
        stride_kd,
        stride_mm,
        stride_mn,
        HAS_MASK,
        ROWS,
        BLOCK_N,
        BLOCK_D,
        UPCAST,
    )
    m_poison = (b_score != b_score) | (b_score == float("inf"))  # allowed: the others are -inf
    b_max = tl.max(tl.where(m_poison, float("-inf"), b_score), 1)
    # A tile of scores that are all -inf counts them, so that a row of nothing else is told from a row that is masked.
    b_base = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_sum = tl.sum(tl.where(m_poison, 0.0, tl.exp(b_score - b_base[:, None])), 1)
    b_sum = tl.where(b_max == float("-inf"), tl.sum(m_allowed.to(tl.float32), 1), b_sum)
    b_sum = tl.where(tl.sum(m_poison.to(tl.int32), 1) > 0, float("nan"), b_sum)
    i_row = (i_b * num_heads + i_head) * num_rows + o_r
    tl.store(p_max + i_row * num_tiles + i_t, b_max, mask=o_r < num_rows)
    tl.store(p_sum + i_row * num_tiles + i_t, b_sum, mask=o_r < num_rows)
    if STORE:
        m = (o_r < num_rows)[:, None] & (o_n < num_tokens)[None, :]
        tl.store(p_scores + i_row[:, None] * num_tokens + o_n[None, :], b_score, mask=m)


@triton.jit
def saliency_kernel(
    p_query,
    p_key,
    p_mask,
    p_max,
    p_sum,
    p_scores,
    p_saliency,
    num_heads,
    num_rows,
    group_m,
    num_tokens,
    head_dim,
    num_tiles,
    scale,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_mb,
    stride_mm,
    stride_mn,
    HAS_MASK: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Attention summed over all rows, head after head, for one tile of keys."""
    i_b = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_tiles = tl.cdiv(num_rows, ROWS)
    b_saliency = tl.zeros((BLOCK_N,), tl.float32)
    for i in range(0, num_heads * row_tiles):
        i_head = tl.full((), 0, tl.int64) + i // row_tiles
        o_r = i % row_tiles * ROWS + tl.arange(0, ROWS)
        i_row = (i_b * num_heads + i_head) * num_rows + o_r
        m_r = o_r < num_rows
        b_max = tl.full((ROWS,), float("-inf"), tl.float32)
        b_sum = tl.zeros((ROWS,), tl.float32)
        b_none = tl.zeros((ROWS,), tl.float32)
        for t in range(0, num_tiles, BLOCK_T):
            o_t = t + tl.arange(0, BLOCK_T)
            m_t = m_r[:, None] & (o_t < num_tiles)[None, :]
            b_tile_max = tl.load(p_max + i_row[:, None] * num_tiles + o_t[None, :], mask=m_t, other=float("-inf"))
            b_tile_sum = tl.load(p_sum + i_row[:, None] * num_tiles + o_t[None, :], mask=m_t, other=0.0)
            b_next = tl.maximum(b_max, tl.max(b_tile_max, 1))
            b_base = tl.where(b_next == float("-inf"), 0.0, b_next)
            m_none = b_tile_max == float("-inf")
            b_none += tl.sum(tl.where(m_none, b_tile_sum, 0.0), 1)
            b_part = tl.where(
                m_none & (b_tile_sum == b_tile_sum), 0.0, b_tile_sum * tl.exp(b_tile_max - b_base[:, None])
            )
            b_sum = b_sum * tl.exp(b_max - b_base) + tl.sum(b_part, 1)
            b_max = b_next
        m_empty = b_max == float("-inf")
        b_base = tl.where(m_empty, 0.0, b_max)
        # Nothing allowed: 0. Only -inf (or a poisoned tile): NaN, as softmax.
        b_inverse = tl.where(
            m_empty, tl.where(b_none == 0.0, 0.0, float("nan")), tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), b_sum)
        )
        if STORE:
            m = m_r[:, None] & (o_n < num_tokens)[None, :]
            b_score = tl.load(p_scores + i_row[:, None] * num_tokens + o_n[None, :], mask=m, other=float("-inf"))
        else:
            b_score, _ = _scores(
                p_query + i_b * stride_qb,
                p_key + i_b * stride_kb + i_head * stride_kh,
                p_mask + i_b * stride_mb,
                o_r,
                o_n,
                i_head,
                num_rows,
                group_m,
                num_tokens,
                head_dim,
                scale,
                stride_qh,
                stride_qm,
                stride_qd,
                stride_kn,
                stride_kd,
                stride_mm,
                stride_mn,
                HAS_MASK,
                ROWS,
                BLOCK_N,
                BLOCK_D,
                UPCAST,
            )
        b_weight = tl.exp(b_score - b_base[:, None])
        b_saliency += tl.sum(product(b_weight, b_inverse[:, None]), 0)
    tl.store(p_saliency + i_b * num_tokens + o_n, b_saliency, mask=o_n < num_tokens)


def _config(heads: int, rows: int, head_dim: int, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants of the two kernels: `rows` see each of `heads` key heads. Nothing here depends on the batch."""
    store = heads * rows <= STORED_ROWS
    tile_rows = 1 if rows == 1 else 16 if store else min(max(next_power_of_2(rows), 16), 32)
    width = 128 if rows == 1 else 32 if dtype == torch.float32 else 64
    both = {"STORE": store, "BLOCK_D": min(max(next_power_of_2(head_dim), 16), width), "UPCAST": UPCAST}
    second = (
        {"ROWS": min(next_power_of_2(heads * rows), 32), "BLOCK_N": 32}
        if store
        else {"ROWS": tile_rows, "BLOCK_N": TILE_N}
    )
    return {"ROWS": tile_rows, "BLOCK_N": TILE_N, **both}, {"BLOCK_T": 16, **second, **both}


def attention_saliency(query: Tensor, key: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    if query.dtype == torch.float64 or query.shape[-1] == 0:
        return torch.ops.vitcop_reference.attention_saliency(query, key, mask, scale=scale)
    if query.dim() == 3:
        return attention_saliency(query[None], key[None], None if mask is None else mask[None], scale=scale)[0]

    batch, query_heads, m, head_dim = query.shape
    heads, num_tokens = key.shape[1:3]
    rows = query_heads // heads * m
    if rows == 0:
        return torch.zeros((batch, num_tokens), dtype=torch.float32, device=query.device)
    saliency = torch.empty((batch, num_tokens), dtype=torch.float32, device=query.device)
    tiles, (first, second) = cdiv(num_tokens, TILE_N), _config(heads, rows, head_dim, query.dtype)
    statistics = torch.empty((2, batch, heads, rows, tiles), dtype=torch.float32, device=query.device)
    stored = num_tokens if first["STORE"] else 0
    scores = torch.empty((batch, heads, rows, stored), dtype=torch.float32, device=query.device)
    factor = head_dim**-0.5 if scale is None else scale
    allowed = query if mask is None else mask.view(torch.uint8)
    strides = (*query.stride(), *key.stride(), *((0, 0, 0) if mask is None else mask.stride()))
    launch(
        statistics_kernel,
        (tiles, heads * cdiv(rows, first["ROWS"]), batch),
        query,
        key,
        allowed,
        *statistics,
        scores,
        rows,
        m,
        num_tokens,
        head_dim,
        tiles,
        factor,
        *strides,
        HAS_MASK=mask is not None,
        **first,
        num_warps=4,
        num_stages=1,
    )
    if first["STORE"]:  # the rows of all heads lie one after the other
        heads, rows = 1, heads * rows
    launch(
        saliency_kernel,
        (cdiv(num_tokens, second["BLOCK_N"]), batch),
        query,
        key,
        allowed,
        *statistics,
        scores,
        saliency,
        heads,
        rows,
        m,
        num_tokens,
        head_dim,
        tiles,
        factor,
        *strides,
        HAS_MASK=mask is not None,
        **second,
        num_warps=4,
        num_stages=1,
    )
    return saliency


def _specs(name: str, heads: int, rows: int, head_dim: int, dtype: torch.dtype, mask: bool) -> list[AotSpec]:
    first, second = _config(heads, rows, head_dim, dtype)
    pointers = {
        "p_query": f"*{NAMES[dtype]}",
        "p_key": f"*{NAMES[dtype]}",
        "p_mask": "*u8" if mask else f"*{NAMES[dtype]}",
    }
    floats = dict.fromkeys(("p_max", "p_sum", "p_scores"), "*fp32")
    counts = dict.fromkeys(("num_rows", "group_m", "num_tokens", "head_dim", "num_tiles"), "i32")
    strides = dict.fromkeys(
        ("stride_qb", "stride_qh", "stride_qm", "stride_kb", "stride_kh", "stride_kn", "stride_mb", "stride_mm"), "i32"
    )
    units = {"stride_qd": 1, "stride_kd": 1, "stride_mn": 1, "HAS_MASK": mask, "UPCAST": False}
    aligned = (*pointers, *floats, "head_dim", *(s for s in strides if s[:8] != "stride_m"))
    claims = (
        {} if first["ROWS"] == 1 else {"hip": "mfma"} if dtype == torch.float32 else {"cuda:80": "mma", "hip": "mfma"}
    )
    common = {**pointers, **floats, **counts, "scale": "fp32", **strides}
    specs = [
        AotSpec(
            f"attention_saliency:statistics[{name}]",
            statistics_kernel,
            common,
            {**first, **units},
            num_stages=1,
            claims=claims,
            divisible=aligned,
        )
    ]
    if not (second["STORE"] and (mask or dtype != torch.float32)):  # stored scores are float32, and masked already
        specs.append(
            AotSpec(
                f"attention_saliency:saliency[{name}]",
                saliency_kernel,
                {**common, "p_saliency": "*fp32", "num_heads": "i32"},
                {**second, **units},
                num_stages=1,
                claims={} if second["STORE"] else claims,
                divisible=aligned,
            )
        )
    return specs


def aot_specs() -> list[AotSpec]:
    """Key heads, rows that see each, and head_dim of what the adapters call."""
    shapes = {
        "one row": (16, 1, 64),
        "one row of 128": (32, 1, 128),
        "grouped": (8, 4, 128),
        "stored": (32, 20, 128),
        "recomputed": (32, 64, 256),
    }
    found = []
    for case, shape in shapes.items():
        # fp32 without a mask also stands for what reads stored scores.
        kinds = [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)]
        if case == "recomputed":
            kinds += [(torch.float16, False)]
        for dtype, mask in kinds:
            found += _specs(f"{NAMES[dtype]},{case}{',mask' * mask}", *shape, dtype, mask)
    return found
