"""segment_mean_backward on a GPU: two launches, gathers alone, so that no atomics decide an order.

1. locate_kernel: where every token went: its segment, the segment that added it as anchor, and whether that is all.
2. gradient_kernel: one program per token and slab of channels sums what came of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import NAMES, cdiv, launch, narrow, widen

TOKENS = 32  # tokens located by one program
BLOCK = 128  # entries of perm, or segments, at a time
BLOCK_C = 1024  # channels of one program of the second launch


@triton.jit
def segment_of(p_offsets, o_i, num_segments, num_tokens, stride_os, STEPS: tl.constexpr):
    """The segment that each entry of perm is in: as many as end at or before it (num_segments: after the last)."""
    b_low = o_i * 0
    for step in tl.static_range(STEPS):
        b_next = b_low + (1 << (STEPS - 1 - step))
        m_next = b_next <= num_segments
        b_end = tl.load(p_offsets + b_next.to(tl.int64) * stride_os, mask=m_next, other=0)
        b_low = tl.where(m_next & (tl.minimum(b_end, num_tokens) <= o_i), b_next, b_low)
    return b_low


@triton.jit
def locate_kernel(
    p_perm,
    p_offsets,
    p_anchors,
    p_merged,
    p_segment,
    p_added,
    p_more,
    num_segments,
    num_tokens,
    stride_pb,
    stride_pn,
    stride_ob,
    stride_os,
    stride_ab,
    stride_as,
    stride_mb,
    stride_ms,
    ADD_ANCHOR: tl.constexpr,
    STEPS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_b = tl.program_id(1).to(tl.int64)
    o_i = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    p_perm += i_b * stride_pb
    p_offsets += i_b * stride_ob
    begin = tl.minimum(tl.maximum(tl.load(p_offsets), 0), num_tokens).to(tl.int32)
    end = tl.minimum(tl.maximum(tl.load(p_offsets + num_segments * stride_os), 0), num_tokens).to(tl.int32)

    b_uses = tl.zeros((TOKENS,), tl.int32)
    b_first = tl.zeros((TOKENS,), tl.int32) + num_tokens
    for j in range(begin, end, BLOCK):
        o_j = j + tl.arange(0, BLOCK)
        b_token = tl.load(p_perm + o_j.to(tl.int64) * stride_pn, mask=o_j < end, other=0)
        b_token = tl.minimum(tl.maximum(b_token, 0), num_tokens - 1).to(tl.int32)
        m_same = (o_j < end)[None, :] & (b_token[None, :] == o_i[:, None])  # [TOKENS, BLOCK]
        b_uses += tl.sum(m_same.to(tl.int32), 1)
        b_first = tl.minimum(b_first, tl.min(tl.where(m_same, o_j[None, :], num_tokens), 1))
    b_segment = segment_of(p_offsets, b_first, num_segments, num_tokens, stride_os, STEPS)
    b_segment = tl.where((b_uses > 0) & (b_segment < num_segments), b_segment, -1)

    b_added = tl.zeros((TOKENS,), tl.int32) + num_segments
    b_times = tl.zeros((TOKENS,), tl.int32)
    if ADD_ANCHOR:
        p_anchors += i_b * stride_ab
        p_merged += i_b * stride_mb
        for j in range(0, num_segments, BLOCK):
            o_j = j + tl.arange(0, BLOCK)
            m_j = tl.load(p_merged + o_j.to(tl.int64) * stride_ms, mask=o_j < num_segments, other=0) != 0
            b_anchor = tl.load(p_anchors + o_j.to(tl.int64) * stride_as, mask=m_j, other=0)
            b_anchor = tl.minimum(tl.maximum(b_anchor, 0), num_tokens - 1).to(tl.int32)
            m_same = m_j[None, :] & (b_anchor[None, :] == o_i[:, None])
            b_times += tl.sum(m_same.to(tl.int32), 1)
            b_added = tl.minimum(b_added, tl.min(tl.where(m_same, o_j[None, :], num_segments), 1))
    o_out = i_b * num_tokens + o_i
    m_out = o_i < num_tokens
    tl.store(p_segment + o_out, b_segment, mask=m_out)
    tl.store(p_added + o_out, tl.where(b_times > 0, b_added, -1), mask=m_out)
    tl.store(p_more + o_out, ((b_uses > 1) | (b_times > 1)).to(tl.int32), mask=m_out)


@triton.jit
def _row(p_grad, i_s, o_c, width, stride_gs, stride_gc):
    """One row of the gradient in float32; a negative row is 0."""
    p_row = p_grad + tl.maximum(i_s, 0).to(tl.int64) * stride_gs + o_c.to(tl.int64) * stride_gc
    return widen(tl.load(p_row, mask=o_c < tl.where(i_s >= 0, width, 0), other=0.0))


@triton.jit
def _share(p_grad, p_offsets, i_s, o_c, width, num_tokens, stride_gs, stride_gc, stride_os):
    """A row of the gradient over the length of its segment."""
    i_at = tl.maximum(i_s, 0)
    first = tl.minimum(tl.maximum(tl.load(p_offsets + i_at * stride_os), 0), num_tokens)
    end = tl.minimum(tl.maximum(tl.load(p_offsets + (i_at + 1) * stride_os), 0), num_tokens)
    b_row = _row(p_grad, i_s, o_c, width, stride_gs, stride_gc)
    return tl.div_rn(b_row, (o_c * 0).to(tl.float32) + tl.maximum(end - first, 1).to(tl.float32))


@triton.jit
def gradient_kernel(
    p_grad,
    p_perm,
    p_offsets,
    p_anchors,
    p_merged,
    p_segment,
    p_added,
    p_more,
    p_out,
    num_segments,
    num_tokens,
    width,
    stride_gb,
    stride_gs,
    stride_gc,
    stride_pb,
    stride_pn,
    stride_ob,
    stride_os,
    stride_ab,
    stride_as,
    stride_mb,
    stride_ms,
    ADD_ANCHOR: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_b, i_n = i_row // num_tokens, i_row % num_tokens
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p_grad += i_b * stride_gb
    p_offsets += i_b * stride_ob
    if tl.load(p_more + i_row) == 0:
        i_s = tl.load(p_segment + i_row)
        b_sum = _share(p_grad, p_offsets, i_s, o_c, width, num_tokens, stride_gs, stride_gc, stride_os)
        if ADD_ANCHOR:
            b_sum += _row(p_grad, tl.load(p_added + i_row), o_c, width, stride_gs, stride_gc)
    else:  # perm or anchors name the token several times: every entry is looked at, in ascending order
        b_sum = tl.zeros((BLOCK_C,), tl.float32)
        begin = tl.minimum(tl.maximum(tl.load(p_offsets), 0), num_tokens).to(tl.int32)
        end = tl.minimum(tl.maximum(tl.load(p_offsets + num_segments * stride_os), 0), num_tokens).to(tl.int32)
        for j in range(begin, end):
            token = tl.load(p_perm + i_b * stride_pb + j * stride_pn)
            if tl.minimum(tl.maximum(token, 0), num_tokens - 1) == i_n:
                i_s = segment_of(p_offsets, j, num_segments, num_tokens, stride_os, STEPS)
                b_sum += _share(p_grad, p_offsets, i_s, o_c, width, num_tokens, stride_gs, stride_gc, stride_os)
        if ADD_ANCHOR:
            for s in range(0, num_segments):
                token = tl.load(p_anchors + i_b * stride_ab + s * stride_as)
                same = tl.minimum(tl.maximum(token, 0), num_tokens - 1) == i_n
                if same & (tl.load(p_merged + i_b * stride_mb + s * stride_ms) != 0):
                    b_sum += _row(p_grad, s, o_c, width, stride_gs, stride_gc)
    tl.store(p_out + i_row * width + o_c, narrow(b_sum, p_out.dtype.element_ty), mask=o_c < width)


def segment_mean_backward(
    grad: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> Tensor:
    if grad.dtype == torch.float64:
        return torch.ops.vitcop_reference.segment_mean_backward(grad, perm, offsets, anchors, merged, merge=merge)
    add = merge == "anchor_plus_mean"
    if grad.dim() == 2:
        lift = [t[None] if add and t is not None else None for t in (anchors, merged)]
        return segment_mean_backward(grad[None], perm[None], offsets[None], lift[0], lift[1], merge=merge)[0]

    batch, num_segments, width = grad.shape
    num_tokens = perm.shape[1]
    if num_segments == 0:
        return grad.new_zeros((batch, num_tokens, width))
    out = torch.empty((batch, num_tokens, width), dtype=grad.dtype, device=grad.device)
    anchors, merged = (anchors, merged) if add else (perm, perm)
    assert anchors is not None and merged is not None
    if merged.dtype == torch.bool:
        merged = merged.view(torch.uint8)
    segment, added, more = torch.empty((3, batch, num_tokens), dtype=torch.int32, device=grad.device)
    strides = (*perm.stride(), *offsets.stride(), *anchors.stride(), *merged.stride())
    steps = _steps(num_segments)
    launch(
        locate_kernel,
        (cdiv(num_tokens, TOKENS), batch),
        perm,
        offsets,
        anchors,
        merged,
        segment,
        added,
        more,
        num_segments,
        num_tokens,
        *strides,
        ADD_ANCHOR=add,
        STEPS=steps,
        TOKENS=TOKENS,
        BLOCK=BLOCK,
        num_warps=4,
    )
    launch(
        gradient_kernel,
        (batch * num_tokens, cdiv(width, BLOCK_C)),
        grad,
        perm,
        offsets,
        anchors,
        merged,
        segment,
        added,
        more,
        out,
        num_segments,
        num_tokens,
        width,
        *grad.stride(),
        *strides,
        ADD_ANCHOR=add,
        STEPS=steps,
        BLOCK_C=BLOCK_C,
        num_warps=4,
    )
    return out


def _steps(num_segments: int) -> int:
    """Halvings of a search among num_segments + 1 answers."""
    return num_segments.bit_length()


def aot_specs() -> list[AotSpec]:
    plan = {"p_perm": "*i64", "p_offsets": "*i64", "p_anchors": "*i64"}
    found = dict.fromkeys(("p_segment", "p_added", "p_more"), "*i32")
    ones = dict.fromkeys(("stride_pn", "stride_os", "stride_as", "stride_ms"), 1)
    sizes = dict.fromkeys(("num_segments", "num_tokens", "stride_pb", "stride_ob", "stride_ab", "stride_mb"), "i32")
    specs = []
    for add in (False, True):
        name, merged = ("anchor_plus_mean", "*u8") if add else ("mean", "*i64")
        for segments in (77, 1000):
            constexprs = {**ones, "ADD_ANCHOR": add, "STEPS": _steps(segments)}
            specs.append(
                AotSpec(
                    f"segment_mean_backward:locate[{name},{segments}]",
                    locate_kernel,
                    {**plan, "p_merged": merged, **found, **sizes},
                    {**constexprs, "TOKENS": TOKENS, "BLOCK": BLOCK},
                )
            )
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                p = f"*{NAMES[dtype]}"
                signature = {"p_grad": p, **plan, "p_merged": merged, **found, "p_out": p, **sizes}
                specs.append(
                    AotSpec(
                        f"segment_mean_backward:gradient[{name},{NAMES[dtype]},{segments}]",
                        gradient_kernel,
                        {**signature, **dict.fromkeys(("width", "stride_gb", "stride_gs"), "i32")},
                        {**constexprs, "stride_gc": 1, "BLOCK_C": BLOCK_C},
                        divisible=("p_grad", "p_out", "width", "stride_gb", "stride_gs"),
                    )
                )
    return specs
