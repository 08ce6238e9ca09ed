"""key_norms on a GPU: one program per few tokens, all heads, one pass over the keys."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import NAMES, cdiv, launch, next_power_of_2, product, widen

ROWS = 2  # tokens of one program
TILE = 4096  # elements of keys in flight in one program


@triton.jit
def key_norms_kernel(
    p_keys,
    p_norms,
    num_heads,
    num_tokens,
    head_dim,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    MEAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_b = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_n = o_n < num_tokens
    o_h = tl.arange(0, BLOCK_H)
    p_rows = p_keys + i_b * stride_b + o_n[:, None, None] * stride_n
    b_total = tl.zeros((ROWS,), tl.float32)
    for d in range(0, head_dim, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        m_d = m_n[:, None, None] & (o_d < head_dim)[None, None, :]
        b_acc = tl.zeros((ROWS, BLOCK_H, BLOCK_D), tl.float32)
        for h in range(0, num_heads, BLOCK_H):
            o_heads = (h + o_h)[None, :, None]
            p = p_rows + o_heads.to(tl.int64) * stride_h + o_d[None, None, :].to(tl.int64) * stride_d
            b_key = widen(tl.load(p, mask=m_d & (o_heads < num_heads), other=0.0))
            b_acc = b_acc + b_key if MEAN else tl.fma(b_key, b_key, b_acc)
        if MEAN:
            b_sum = tl.sum(b_acc, 1)
            b_total += tl.sum(product(b_sum, b_sum), 1)
        else:
            b_total += tl.sum(tl.sum(b_acc, 1), 1)
    b_norm = tl.sqrt_rn(b_total)
    if MEAN:
        b_norm = tl.div_rn(b_norm, tl.full((ROWS,), num_heads, tl.float32))

    # Outside of [1e-24, max] squares may have overflowed or vanished: these tokens once more in float64.
    m_redo = m_n & ~((b_total >= 1e-24) & (b_total <= 3.0e38))
    if tl.max(m_redo.to(tl.int32), 0) > 0:
        p_redo = p_keys + i_b * stride_b + o_n[:, None] * stride_n
        b_exact = tl.zeros((ROWS,), tl.float64)
        for d in range(0, head_dim, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            m_d = m_redo[:, None] & (o_d < head_dim)[None, :]
            b_wide = tl.zeros((ROWS, BLOCK_D), tl.float64)
            p = p_redo + o_d[None, :].to(tl.int64) * stride_d
            for _ in range(0, num_heads):
                b_key = widen(tl.load(p, mask=m_d, other=0.0)).to(tl.float64)
                b_wide += b_key if MEAN else b_key * b_key
                p += stride_h
            b_exact += tl.sum(product(b_wide, b_wide) if MEAN else b_wide, 1)
        b_root = tl.sqrt(b_exact)
        if MEAN:
            b_root = b_root / num_heads
        b_norm = tl.where(m_redo, b_root.to(tl.float32), b_norm)
    tl.store(p_norms + i_b * num_tokens + o_n, b_norm, mask=m_n)


def _blocks(num_heads: int, head_dim: int) -> dict[str, Any]:
    block_d = min(next_power_of_2(head_dim), 128)
    return {
        "ROWS": ROWS,
        "BLOCK_H": min(next_power_of_2(num_heads), max(1, TILE // (ROWS * block_d))),
        "BLOCK_D": block_d,
    }


def key_norms(keys: Tensor, *, heads: str = "l2") -> Tensor:
    if keys.dtype == torch.float64:
        return torch.ops.vitcop_reference.key_norms(keys, heads=heads)
    batched = keys if keys.dim() == 4 else keys[None]
    batch, num_heads, num_tokens, head_dim = batched.shape
    norms = torch.empty((*keys.shape[:-3], num_tokens), dtype=torch.float32, device=keys.device)
    launch(
        key_norms_kernel,
        (cdiv(num_tokens, ROWS), batch),
        batched,
        norms,
        num_heads,
        num_tokens,
        head_dim,
        *batched.stride(),
        MEAN=heads == "mean",
        **_blocks(num_heads, head_dim),
        num_warps=4,
    )
    return norms


def aot_specs() -> list[AotSpec]:
    sizes = ("num_heads", "num_tokens", "head_dim", "stride_b", "stride_h", "stride_n")
    shapes = (("l2", 32, 128), ("mean", 32, 128), ("l2", 8, 80), ("l2", 2, 256), ("l2", 1, 64))
    return [
        AotSpec(
            name=f"key_norms[{heads},{NAMES[dtype]},{num_heads}x{head_dim}]",
            kernel=key_norms_kernel,
            signature={"p_keys": f"*{NAMES[dtype]}", "p_norms": "*fp32", **dict.fromkeys(sizes, "i32")},
            constexprs={"stride_d": 1, "MEAN": heads == "mean", **_blocks(num_heads, head_dim)},
            divisible=("p_keys", "p_norms", "head_dim", "stride_b", "stride_h", "stride_n"),
        )
        for dtype in (torch.bfloat16, torch.float32)
        for heads, num_heads, head_dim in (shapes if dtype == torch.bfloat16 else shapes[:2])
    ]
