"""segment_mean on a GPU: one program per output token and slab of channels, several tokens in flight, no atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import NAMES, cdiv, launch, narrow, widen

BLOCK_C = 1024  # channels of one program: 16 bytes of a half-precision row per thread
UNROLL = 8  # tokens in flight


@triton.jit
def mean_of_segment(
    p_x,
    p_perm,
    p_offsets,
    p_anchors,
    p_merged,
    p_y,
    i_row,
    i_b,
    i_s,
    i_slab,
    num_tokens,
    width,
    stride_xb,
    stride_xn,
    stride_xc,
    stride_pb,
    stride_pn,
    stride_ob,
    stride_os,
    stride_ab,
    stride_as,
    stride_mb,
    stride_ms,
    ADD_ANCHOR: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Segment i_s of sample i_b, one slab of its channels, to row i_row of y."""
    o_c = i_slab * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < width
    p_x += i_b * stride_xb
    p_columns = p_x + o_c.to(tl.int64) * stride_xc
    p_perm += i_b * stride_pb
    p_offsets += i_b * stride_ob
    p_out = p_y + i_row * width + o_c

    # Indices out of range are clamped: they must not corrupt memory.
    first = tl.minimum(tl.maximum(tl.load(p_offsets + i_s * stride_os), 0), num_tokens)
    end = tl.minimum(tl.maximum(tl.load(p_offsets + (i_s + 1) * stride_os), 0), num_tokens)
    count = tl.maximum(end - first, 0)
    added = False
    if ADD_ANCHOR:
        added = tl.load(p_merged + i_b * stride_mb + i_s * stride_ms) != 0

    if (count == 1) & (not added):
        row = tl.minimum(tl.maximum(tl.load(p_perm + first * stride_pn), 0), num_tokens - 1)
        tl.store(p_out, tl.load(p_columns + row * stride_xn, mask=m_c), mask=m_c)
    else:
        b_sum = tl.zeros((BLOCK_C,), tl.float32)
        for t in range(first, end, UNROLL):
            for u in tl.static_range(UNROLL):
                row = tl.load(p_perm + tl.minimum(t + u, end - 1) * stride_pn)
                row = tl.minimum(tl.maximum(row, 0), num_tokens - 1)
                b_sum += widen(
                    tl.load(p_columns + row * stride_xn, mask=o_c < tl.where(t + u < end, width, 0), other=0.0)
                )
        divisor = tl.maximum(count, 1)
        b_mean = tl.div_rn(b_sum, tl.full((BLOCK_C,), 0.0, tl.float32) + divisor.to(tl.float32))
        if ADD_ANCHOR:
            row = tl.load(p_anchors + i_b * stride_ab + i_s * stride_as)
            row = tl.minimum(tl.maximum(row, 0), num_tokens - 1)
            b_anchor = widen(tl.load(p_columns + row * stride_xn, mask=o_c < tl.where(added, width, 0), other=0.0))
            b_mean = tl.where(added, b_anchor + b_mean, b_mean)

        # float32 overflowed (or x is not finite): these channels once more in float64.
        m_redo = m_c & ~(tl.abs(b_mean) <= 3.4028234663852886e38)
        if tl.max(m_redo.to(tl.int32), 0) > 0:
            b_wide = tl.zeros((BLOCK_C,), tl.float64)
            for t in range(first, end):
                row = tl.minimum(tl.maximum(tl.load(p_perm + t * stride_pn), 0), num_tokens - 1)
                b_wide += widen(tl.load(p_columns + row * stride_xn, mask=m_redo, other=0.0)).to(tl.float64)
            b_wide = b_wide / divisor.to(tl.float64)
            if ADD_ANCHOR:
                b_wide = tl.where(added, b_anchor.to(tl.float64) + b_wide, b_wide)
            b_mean = tl.where(m_redo, b_wide.to(tl.float32), b_mean)
        tl.store(p_out, narrow(b_mean, p_y.dtype.element_ty), mask=m_c)


@triton.jit
def segment_mean_kernel(
    p_x,
    p_perm,
    p_offsets,
    p_anchors,
    p_merged,
    p_y,
    num_segments,
    num_tokens,
    width,
    stride_xb,
    stride_xn,
    stride_xc,
    stride_pb,
    stride_pn,
    stride_ob,
    stride_os,
    stride_ab,
    stride_as,
    stride_mb,
    stride_ms,
    ADD_ANCHOR: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    mean_of_segment(
        p_x,
        p_perm,
        p_offsets,
        p_anchors,
        p_merged,
        p_y,
        i_row,
        i_row // num_segments,
        i_row % num_segments,
        tl.program_id(1),
        num_tokens,
        width,
        stride_xb,
        stride_xn,
        stride_xc,
        stride_pb,
        stride_pn,
        stride_ob,
        stride_os,
        stride_ab,
        stride_as,
        stride_mb,
        stride_ms,
        ADD_ANCHOR,
        UNROLL,
        BLOCK_C,
    )


def segment_mean(
    x: Tensor,
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor | None = None,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> Tensor:
    if x.dtype == torch.float64:
        return torch.ops.vitcop_reference.segment_mean(x, perm, offsets, anchors, merged, merge=merge)
    add = merge == "anchor_plus_mean"
    if x.dim() == 2:
        lift = [t[None] if add and t is not None else None for t in (anchors, merged)]
        return segment_mean(x[None], perm[None], offsets[None], lift[0], lift[1], merge=merge)[0]

    batch, num_tokens, width = x.shape
    num_segments = offsets.shape[1] - 1
    y = torch.empty((batch, num_segments, width), dtype=x.dtype, device=x.device)
    anchors, merged = (anchors, merged) if add else (perm, perm)
    assert anchors is not None and merged is not None
    if merged.dtype == torch.bool:
        merged = merged.view(torch.uint8)
    launch(
        segment_mean_kernel,
        (batch * num_segments, cdiv(width, BLOCK_C)),
        x,
        perm,
        offsets,
        anchors,
        merged,
        y,
        num_segments,
        num_tokens,
        width,
        *x.stride(),
        *perm.stride(),
        *offsets.stride(),
        *anchors.stride(),
        *merged.stride(),
        ADD_ANCHOR=add,
        UNROLL=UNROLL,
        BLOCK_C=BLOCK_C,
        num_warps=4,
    )
    return y


def aot_specs() -> list[AotSpec]:
    sizes = (
        "num_segments",
        "num_tokens",
        "width",
        "stride_xb",
        "stride_xn",
        "stride_pb",
        "stride_ob",
        "stride_ab",
        "stride_mb",
    )
    return [
        AotSpec(
            name=f"segment_mean[{'anchor_plus_mean' if add else 'mean'},{NAMES[dtype]}]",
            kernel=segment_mean_kernel,
            signature={
                "p_x": f"*{NAMES[dtype]}",
                "p_perm": "*i64",
                "p_offsets": "*i64",
                "p_anchors": "*i64",
                "p_merged": "*u8" if add else "*i64",
                "p_y": f"*{NAMES[dtype]}",
                **dict.fromkeys(sizes, "i32"),
            },
            constexprs={
                **dict.fromkeys(("stride_xc", "stride_pn", "stride_os", "stride_as", "stride_ms"), 1),
                "ADD_ANCHOR": add,
                "UNROLL": UNROLL,
                "BLOCK_C": BLOCK_C,
            },
            divisible=("p_x", "p_perm", "p_offsets", "p_y", "width", "stride_xb", "stride_xn"),
        )
        for dtype in (torch.bfloat16, torch.float32)
        for add in (False, True)
    ]
