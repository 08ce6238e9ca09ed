"""expand_plan on a GPU: one launch, one program per sample, a block at a time.

What one step writes to scratch and another reads lies in global memory of this program alone, a barrier between them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import launch, next_power_of_2
from vitcop_kernels.ops.segment_mean_backward.kernel import segment_of

MAX_BLOCK = 1024  # slots, tokens or segments at a time

TEXT = tl.constexpr(-1)  # owner of a slot: a segment of its own,
PADDING = tl.constexpr(-2)  # padding,
NOBODY = tl.constexpr(0)  # a visual token of no segment; else its segment + 1


@triton.jit
def _slots_of(p_slots, b_token, m_token, num_tokens, num_slots, stride_sv):
    """Slot of each token, and which of the tokens have one."""
    m_token = m_token & (b_token >= 0) & (b_token < num_tokens)
    b_slot = tl.load(p_slots + b_token * stride_sv, mask=m_token, other=-1)
    return b_slot, m_token & (b_slot >= 0) & (b_slot < num_slots)


@triton.jit
def _bounds(p_offsets, o_s, m_s, num_tokens, stride_os, HAS_PERM: tl.constexpr):
    """First entry and length of each segment."""
    if HAS_PERM:
        b_first = tl.load(p_offsets + o_s.to(tl.int64) * stride_os, mask=m_s, other=0)
        b_end = tl.load(p_offsets + (o_s + 1).to(tl.int64) * stride_os, mask=m_s, other=0)
        b_first = tl.minimum(tl.maximum(b_first, 0), num_tokens).to(tl.int32)
        return b_first, tl.maximum(tl.minimum(b_end, num_tokens).to(tl.int32) - b_first, 0)
    return o_s, m_s.to(tl.int32)


@triton.jit
def expand_kernel(
    p_slots,
    p_anchors,
    p_perm,
    p_offsets,
    p_merged,
    p_valid,
    p_out_perm,
    p_out_offsets,
    p_out_anchors,
    p_out_merged,
    p_column,
    p_out_slots,
    p_removed,
    p_scratch,
    num_tokens,
    num_segments,
    num_slots,
    out_len,
    stride_sb,
    stride_sv,
    stride_ab,
    stride_as,
    stride_pb,
    stride_pv,
    stride_ob,
    stride_os,
    stride_mb,
    stride_ms,
    stride_vb,
    stride_vn,
    HAS_PERM: tl.constexpr,
    HAS_MERGED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    p_slots += i_b * stride_sb
    p_anchors += i_b * stride_ab
    p_perm += i_b * stride_pb
    p_offsets += i_b * stride_ob
    p_merged += i_b * stride_mb
    p_valid += i_b * stride_vb
    p_out_perm += i_b * num_slots
    p_out_offsets += i_b * (out_len + 1)
    p_out_anchors += i_b * out_len
    p_out_merged += i_b * out_len
    p_column += i_b * num_slots
    p_out_slots += i_b * num_segments
    p_removed += i_b * (out_len + 1)
    p_length = p_scratch + i_b * (2 * num_slots + num_segments)  # [n] at the anchors; + 2^30 where merged
    p_owner = p_length + num_slots  # [n]
    p_start = p_owner + num_slots  # [S]
    num_members = num_tokens if HAS_PERM else num_segments

    for i in range(0, num_slots, BLOCK):
        o_i = i + tl.arange(0, BLOCK)
        m_i = o_i < num_slots
        b_alone = m_i.to(tl.int32)
        if HAS_VALID:
            b_alone = (tl.load(p_valid + o_i.to(tl.int64) * stride_vn, mask=m_i, other=0) != 0).to(tl.int32)
        tl.store(p_length + o_i, b_alone, mask=m_i)
        tl.store(p_owner + o_i, tl.where(b_alone > 0, TEXT, PADDING), mask=m_i)
        tl.store(p_out_perm + o_i, (o_i * 0).to(tl.int64), mask=m_i)
    tl.debug_barrier()
    for v in range(0, num_tokens, BLOCK):
        o_v = v + tl.arange(0, BLOCK)
        b_slot, m_v = _slots_of(p_slots, o_v.to(tl.int64), o_v < num_tokens, num_tokens, num_slots, stride_sv)
        tl.store(p_length + b_slot, o_v * 0, mask=m_v)
        tl.store(p_owner + b_slot, o_v * 0 + NOBODY, mask=m_v)
    tl.debug_barrier()

    # Members know their segment, anchors its length.
    for i in range(0, num_members, BLOCK):
        o_i = i + tl.arange(0, BLOCK)
        m_i = o_i < num_members
        if HAS_PERM:
            b_token = tl.load(p_perm + o_i.to(tl.int64) * stride_pv, mask=m_i, other=-1)
            b_segment = segment_of(p_offsets, o_i, num_segments, num_tokens, stride_os, STEPS)
            m_i = m_i & (b_segment < num_segments) & (o_i >= tl.load(p_offsets))
        else:
            b_token = tl.load(p_anchors + o_i.to(tl.int64) * stride_as, mask=m_i, other=-1)
            b_segment = o_i
        b_anchor = tl.load(p_anchors + b_segment.to(tl.int64) * stride_as, mask=m_i, other=-1)
        m_i = _slots_of(p_slots, b_anchor, m_i, num_tokens, num_slots, stride_sv)[1]
        b_slot, m_i = _slots_of(p_slots, b_token, m_i, num_tokens, num_slots, stride_sv)
        tl.store(p_owner + b_slot, b_segment + 1, mask=m_i)
    for s in range(0, num_segments, BLOCK):
        o_s = s + tl.arange(0, BLOCK)
        m_s = o_s < num_segments
        b_length = _bounds(p_offsets, o_s, m_s, num_tokens, stride_os, HAS_PERM)[1]
        b_anchor = tl.load(p_anchors + o_s.to(tl.int64) * stride_as, mask=m_s, other=-1)
        b_slot, m_s = _slots_of(p_slots, b_anchor, m_s & (b_length > 0), num_tokens, num_slots, stride_sv)
        if HAS_MERGED:
            m_merged = tl.load(p_merged + o_s.to(tl.int64) * stride_ms, mask=m_s, other=0) != 0
            b_length += m_merged.to(tl.int32) * (1 << 30)
        tl.store(p_length + b_slot, b_length, mask=m_s)
    tl.debug_barrier()

    count = tl.full((), 0, tl.int32)
    total = tl.full((), 0, tl.int32)
    for i in range(0, num_slots, BLOCK):
        b_length = tl.load(p_length + i + tl.arange(0, BLOCK), mask=i + tl.arange(0, BLOCK) < num_slots, other=0)
        count += tl.sum((b_length > 0).to(tl.int32), 0)
        total += tl.sum(b_length & 0x3FFFFFFF, 0)

    # New slots in the order of their anchors, slots of no segment at the end of perm.
    lead = out_len - count
    column = lead
    start = tl.full((), 0, tl.int32)
    gone = tl.full((), 0, tl.int32)
    tail = total
    for i in range(0, num_slots, BLOCK):
        o_i = i + tl.arange(0, BLOCK)
        m_i = o_i < num_slots
        b_length = tl.load(p_length + o_i, mask=m_i, other=0)
        b_owner = tl.load(p_owner + o_i, mask=m_i, other=PADDING)
        b_anchor = (b_length > 0).to(tl.int32)
        b_merged = b_length >> 30
        b_length = b_length & 0x3FFFFFFF
        b_column = column + tl.cumsum(b_anchor, 0) - 1
        b_start = start + tl.cumsum(b_length, 0) - b_length
        b_gone = ((b_anchor == 0) & (b_owner >= 0)).to(tl.int32)
        b_removed = gone + tl.cumsum(b_gone, 0)
        m_new = (b_anchor > 0) & (b_column >= 0)
        tl.store(p_column + o_i, tl.where(m_new, b_column, out_len).to(tl.int64), mask=m_i)
        tl.store(p_out_offsets + b_column, tl.minimum(b_start, num_slots).to(tl.int64), mask=m_new)
        tl.store(p_out_anchors + b_column, o_i.to(tl.int64), mask=m_new)
        tl.store(p_out_merged + b_column, b_merged.to(tl.uint8), mask=m_new)
        tl.store(p_removed + b_column, b_removed.to(tl.int64), mask=m_new)
        tl.store(p_start + b_owner - 1, b_start, mask=m_new & (b_owner > 0))
        tl.store(p_out_perm + b_start, o_i.to(tl.int64), mask=(b_owner == TEXT) & (b_start < num_slots))
        b_none = (m_i & ((b_owner == NOBODY) | (b_owner == PADDING))).to(tl.int32)
        b_place = tail + tl.cumsum(b_none, 0) - 1
        tl.store(p_out_perm + b_place, o_i.to(tl.int64), mask=(b_none > 0) & (b_place < num_slots))
        column += tl.sum(b_anchor, 0)
        start += tl.sum(b_length, 0)
        gone += tl.sum(b_gone, 0)
        tail += tl.sum(b_none, 0)
    tl.debug_barrier()

    for i in range(0, num_members, BLOCK):  # the members of the plan's segments
        o_i = i + tl.arange(0, BLOCK)
        m_i = o_i < num_members
        if HAS_PERM:
            b_token = tl.load(p_perm + o_i.to(tl.int64) * stride_pv, mask=m_i, other=-1)
        else:
            b_token = tl.load(p_anchors + o_i.to(tl.int64) * stride_as, mask=m_i, other=-1)
        b_slot, m_i = _slots_of(p_slots, b_token, m_i, num_tokens, num_slots, stride_sv)
        b_segment = tl.load(p_owner + b_slot, mask=m_i, other=0) - 1
        m_i = m_i & (b_segment >= 0)
        b_first = _bounds(p_offsets, b_segment, m_i, num_tokens, stride_os, HAS_PERM)[0]
        b_place = tl.load(p_start + b_segment, mask=m_i, other=0) + o_i - b_first
        m_i = m_i & (b_place >= 0) & (b_place < num_slots)
        tl.store(p_out_perm + b_place, b_slot, mask=m_i)
    for s in range(0, num_segments, BLOCK):
        o_s = s + tl.arange(0, BLOCK)
        m_s = o_s < num_segments
        b_length = _bounds(p_offsets, o_s, m_s, num_tokens, stride_os, HAS_PERM)[1]
        b_anchor = tl.load(p_anchors + o_s.to(tl.int64) * stride_as, mask=m_s, other=-1)
        b_slot, m_known = _slots_of(p_slots, b_anchor, m_s & (b_length > 0), num_tokens, num_slots, stride_sv)
        tl.store(p_out_slots + o_s, tl.load(p_column + b_slot, mask=m_known, other=-1), mask=m_s)
    for s in range(0, out_len + 1, BLOCK):  # padding, and the end
        o_s = s + tl.arange(0, BLOCK)
        m_pad, m_end = o_s < lead, o_s == out_len
        b_end = tl.where(m_end, tl.minimum(total, num_slots), 0)
        tl.store(p_out_offsets + o_s, b_end.to(tl.int64), mask=m_pad | m_end)
        tl.store(p_removed + o_s, tl.where(m_end, gone, 0).to(tl.int64), mask=m_pad | m_end)
        tl.store(p_out_anchors + o_s, (o_s * 0 - 1).to(tl.int64), mask=m_pad & (o_s < out_len))
        tl.store(p_out_merged + o_s, (o_s * 0).to(tl.uint8), mask=m_pad & (o_s < out_len))


def expand_plan(
    slots: Tensor,
    anchors: Tensor,
    perm: Tensor | None = None,
    offsets: Tensor | None = None,
    merged: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    num_slots: int,
    out_len: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if slots.dim() == 1:
        lift = [None if t is None else t[None] for t in (perm, offsets, merged, valid)]
        new = expand_plan(slots[None], anchors[None], *lift, num_slots=num_slots, out_len=out_len)
        return new[0][0], new[1][0], new[2][0], new[3][0], new[4][0], new[5][0], new[6][0]

    batch, num_tokens = slots.shape
    num_segments = anchors.shape[1]

    def empty(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty((batch, size), dtype=dtype, device=slots.device)

    new_perm, new_offsets, new_anchors = empty(num_slots), empty(out_len + 1), empty(out_len)
    new_merged, column = empty(out_len, torch.bool), empty(num_slots)
    new_slots, removed = empty(num_segments), empty(out_len + 1)
    scratch = empty(2 * num_slots + num_segments, torch.int32)
    optional = [slots if t is None else t for t in (perm, offsets, merged, valid)]
    optional = [t.view(torch.uint8) if t.dtype == torch.bool else t for t in optional]
    block = _block(num_slots)
    launch(
        expand_kernel,
        (batch,),
        slots,
        anchors,
        *optional,
        new_perm,
        new_offsets,
        new_anchors,
        new_merged.view(torch.uint8),
        column,
        new_slots,
        removed,
        scratch,
        num_tokens,
        num_segments,
        num_slots,
        out_len,
        *slots.stride(),
        *anchors.stride(),
        *(step for t in optional for step in t.stride()),
        HAS_PERM=perm is not None,
        HAS_MERGED=merged is not None,
        HAS_VALID=valid is not None,
        STEPS=num_segments.bit_length(),
        BLOCK=block,
        num_warps=_num_warps(block),
    )
    return new_perm, new_offsets, new_anchors, new_merged, column, new_slots, removed


def _block(num_slots: int) -> int:
    return min(max(next_power_of_2(num_slots), 128), MAX_BLOCK)


def _num_warps(block: int) -> int:
    return 4 if block <= 256 else 8


def aot_specs() -> list[AotSpec]:
    specs = []
    longs = ("p_slots", "p_anchors", "p_perm", "p_offsets", "p_out_perm", "p_out_offsets", "p_out_anchors")
    sizes = ("num_tokens", "num_segments", "num_slots", "out_len")
    batches = tuple(f"stride_{t}b" for t in "sapomv")
    steps = ("stride_sv", "stride_as", "stride_pv", "stride_os", "stride_ms", "stride_vn")
    for has_perm, has_merged in ((True, True), (False, False)):
        for has_valid in (False, True):
            for num_slots, segments in ((200, 20), (345, 77), (3000, 640)):
                block = _block(num_slots)
                specs.append(
                    AotSpec(
                        f"expand_plan[{has_perm=},{has_valid=},{num_slots},{segments}]",
                        expand_kernel,
                        {
                            **dict.fromkeys((*longs, "p_column", "p_out_slots", "p_removed"), "*i64"),
                            "p_merged": "*u8" if has_merged else "*i64",
                            "p_valid": "*u8" if has_valid else "*i64",
                            "p_out_merged": "*u8",
                            "p_scratch": "*i32",
                            **dict.fromkeys((*sizes, *batches), "i32"),
                        },
                        {
                            **dict.fromkeys(steps, 1),
                            "HAS_PERM": has_perm,
                            "HAS_MERGED": has_merged,
                            "HAS_VALID": has_valid,
                            "STEPS": segments.bit_length(),
                            "BLOCK": block,
                        },
                        num_warps=_num_warps(block),
                    )
                )
    return specs
