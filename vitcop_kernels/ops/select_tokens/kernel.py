"""select_tokens on a GPU: one program per sample finds the k-th best key byte by byte, then writes what is no worse."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._radix import next_digit, order_key
from vitcop_kernels._triton import NAMES, launch, next_power_of_2

MAX_BLOCK = 1024  # longer rows would spill: they are read in pieces, once per byte and once more
PIECE = 2048


@triton.jit
def _load_keys(p_scores, o_n, num_tokens, stride_n, LARGEST: tl.constexpr):
    return order_key(tl.load(p_scores + o_n.to(tl.int64) * stride_n, mask=o_n < num_tokens, other=0.0), LARGEST)


@triton.jit
def _count_digits(b_key, m_key, prefix, SHIFT: tl.constexpr):
    """Histogram of one byte among the keys whose higher bytes are `prefix`."""
    m_key = m_key & ((b_key >> (SHIFT + 8)) == prefix)
    return tl.histogram(((b_key >> SHIFT) & 255).to(tl.int32), 256, mask=m_key)


@triton.jit
def select_tokens_kernel(
    p_scores,
    p_index,
    num_tokens,
    k,
    stride_b,
    stride_n,
    LARGEST: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    p_scores += i_b * stride_b
    p_index += i_b * k
    o_n = tl.arange(0, BLOCK)
    b_key = _load_keys(p_scores, o_n, num_tokens, stride_n, LARGEST)

    threshold = tl.full((), 0, tl.int64)
    ties = tl.full((), 0, tl.int32) + k  # how many keys equal to the threshold are chosen
    for byte in tl.static_range(4):
        b_count = _count_digits(b_key, o_n < num_tokens, threshold, 24 - 8 * byte)
        if not ONE_BLOCK:
            for n in range(BLOCK, num_tokens, BLOCK):
                b_more = _load_keys(p_scores, n + o_n, num_tokens, stride_n, LARGEST)
                b_count += _count_digits(b_more, n + o_n < num_tokens, threshold, 24 - 8 * byte)
        digit, ties = next_digit(b_count, ties)
        threshold = (threshold << 8) | digit

    ties_before = tl.full((), 0, tl.int32)
    kept_before = tl.full((), 0, tl.int32)
    for n in range(0, num_tokens, BLOCK):
        o = n + o_n
        if not ONE_BLOCK:
            b_key = _load_keys(p_scores, o, num_tokens, stride_n, LARGEST)
        m_tie = (o < num_tokens) & (b_key == threshold)
        b_tie = ties_before + tl.cumsum(m_tie.to(tl.int32), 0)
        m_keep = ((o < num_tokens) & (b_key < threshold)) | (m_tie & (b_tie <= ties))
        b_place = kept_before + tl.cumsum(m_keep.to(tl.int32), 0) - 1
        tl.store(p_index + b_place, o.to(tl.int64), mask=m_keep)
        ties_before += tl.sum(m_tie.to(tl.int32), 0)
        kept_before += tl.sum(m_keep.to(tl.int32), 0)


def _config(num_tokens: int) -> dict[str, Any]:
    if num_tokens > MAX_BLOCK:
        return {"ONE_BLOCK": False, "BLOCK": PIECE}
    return {"ONE_BLOCK": True, "BLOCK": max(next_power_of_2(num_tokens), 128)}


def _num_warps(block: int) -> int:
    return 4 if block <= 512 else 8


def select_tokens(scores: Tensor, k: int, *, largest: bool = False) -> Tensor:
    if scores.dtype == torch.float64:
        return torch.ops.vitcop_reference.select_tokens(scores, k, largest=largest)
    batched = scores if scores.dim() == 2 else scores[None]
    batch, num_tokens = batched.shape
    index = torch.empty((*scores.shape[:-1], k), dtype=torch.int64, device=scores.device)
    if k > 0:
        config = _config(num_tokens)
        launch(
            select_tokens_kernel,
            (batch,),
            batched,
            index,
            num_tokens,
            k,
            *batched.stride(),
            LARGEST=largest,
            **config,
            num_warps=_num_warps(config["BLOCK"]),
        )
    return index


def aot_specs() -> list[AotSpec]:
    sizes = ("num_tokens", "k", "stride_b")
    return [
        AotSpec(
            name=f"select_tokens[{'largest' if largest else 'smallest'},{NAMES[dtype]},{num_tokens}]",
            kernel=select_tokens_kernel,
            signature={"p_scores": f"*{NAMES[dtype]}", "p_index": "*i64", **dict.fromkeys(sizes, "i32")},
            constexprs={"stride_n": 1, "LARGEST": largest, **_config(num_tokens)},
            num_warps=_num_warps(_config(num_tokens)["BLOCK"]),
            divisible=("p_scores", "p_index"),
        )
        for dtype, largest, sizes_of in (
            (torch.float32, False, (128, 512, 16384)),  # every number of warps, and pieces
            (torch.float32, True, (1024,)),
            (torch.bfloat16, True, (1024, 16384)),
            (torch.float16, True, (1024,)),
        )
        for num_tokens in sizes_of
    ]
