"""compact_sequence on a GPU: segment_mean with one program more per new slot, which copies the companions' rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import NAMES, cdiv, launch
from vitcop_kernels.ops.segment_mean.kernel import BLOCK_C, UNROLL, mean_of_segment

COMPANIONS = 4  # of one launch
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _copy_row(p_from, p_to, i_b, i_row, row, width, stride_b, stride_n, BLOCK: tl.constexpr):
    for c in range(0, width, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        b_row = tl.load(p_from + i_b * stride_b + row * stride_n + o_c, mask=o_c < width)
        tl.store(p_to + i_row * width + o_c, b_row, mask=o_c < width)


@triton.jit
def compact_kernel(
    p_x,
    p_perm,
    p_offsets,
    p_anchors,
    p_merged,
    p_y,
    p_from0,
    p_from1,
    p_from2,
    p_from3,
    p_to0,
    p_to1,
    p_to2,
    p_to3,
    num_segments,
    num_tokens,
    width,
    num_slabs,
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
    width0,
    width1,
    width2,
    width3,
    stride_b0,
    stride_b1,
    stride_b2,
    stride_b3,
    stride_n0,
    stride_n1,
    stride_n2,
    stride_n3,
    ADD_ANCHOR: tl.constexpr,
    COUNT: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_b, i_s = i_row // num_segments, i_row % num_segments
    if tl.program_id(1) < num_slabs:
        mean_of_segment(
            p_x,
            p_perm,
            p_offsets,
            p_anchors,
            p_merged,
            p_y,
            i_row,
            i_b,
            i_s,
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
    else:
        row = tl.load(p_anchors + i_b * stride_ab + i_s * stride_as)
        row = tl.minimum(tl.maximum(row, 0), num_tokens - 1)
        if COUNT > 0:
            _copy_row(p_from0, p_to0, i_b, i_row, row, width0, stride_b0, stride_n0, BLOCK)
        if COUNT > 1:
            _copy_row(p_from1, p_to1, i_b, i_row, row, width1, stride_b1, stride_n1, BLOCK)
        if COUNT > 2:
            _copy_row(p_from2, p_to2, i_b, i_row, row, width2, stride_b2, stride_n2, BLOCK)
        if COUNT > 3:
            _copy_row(p_from3, p_to3, i_b, i_row, row, width3, stride_b3, stride_n3, BLOCK)


def compact_sequence(
    x: Tensor,
    companions: list[Tensor],
    perm: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    merged: Tensor | None = None,
    *,
    merge: str = "mean",
) -> tuple[Tensor, list[Tensor]]:
    if x.dtype == torch.float64:
        return torch.ops.vitcop_reference.compact_sequence(x, companions, perm, offsets, anchors, merged, merge=merge)
    if x.dim() == 2:
        lift = None if merged is None else merged[None]
        lifted = [t[None] for t in companions]
        y, gathered = compact_sequence(x[None], lifted, perm[None], offsets[None], anchors[None], lift, merge=merge)
        return y[0], [t[0] for t in gathered]

    batch, num_tokens, width = x.shape
    num_segments, add = anchors.shape[1], merge == "anchor_plus_mean"
    y = torch.empty((batch, num_segments, width), dtype=x.dtype, device=x.device)
    flags = merged.view(torch.uint8) if add and merged is not None else perm
    gathered = [torch.empty((batch, num_segments, *t.shape[2:]), dtype=t.dtype, device=x.device) for t in companions]
    pairs = [(_rows(a), _rows(b)) for a, b in zip(companions, gathered, strict=True)]
    slabs = cdiv(width, BLOCK_C)
    for begin in range(0, max(len(pairs), 1), COMPANIONS):
        part = pairs[begin : begin + COMPANIONS]
        count = len(part)
        part = part + [(perm, perm)] * (COMPANIONS - count)
        launch(
            compact_kernel,
            (batch * num_segments, (slabs if begin == 0 else 0) + (count > 0)),
            x,
            perm,
            offsets,
            anchors,
            flags,
            y,
            *(a for a, _ in part),
            *(b for _, b in part),
            num_segments,
            num_tokens,
            width,
            slabs if begin == 0 else 0,
            *x.stride(),
            *perm.stride(),
            *offsets.stride(),
            *anchors.stride(),
            *flags.stride(),
            *(a.shape[-1] for a, _ in part),
            *(a.stride(0) if a.shape[0] > 1 else 0 for a, _ in part),
            *(a.stride(1) for a, _ in part),
            ADD_ANCHOR=add,
            COUNT=count,
            UNROLL=UNROLL,
            BLOCK_C=BLOCK_C,
            BLOCK=128,
            num_warps=4,
        )
    return y, gathered


def _rows(t: Tensor) -> Tensor:
    """[B, n, ...] as [B, n, w] words of its bits, each row contiguous."""
    bits = t.view(BITS[t.dtype.itemsize])
    rows = bits.flatten(2) if bits.dim() > 2 else bits[..., None]
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def aot_specs() -> list[AotSpec]:
    specs = []
    plan = {"p_perm": "*i64", "p_offsets": "*i64", "p_anchors": "*i64"}
    sizes = ("num_segments", "num_tokens", "width", "num_slabs")
    strides = ("stride_xb", "stride_xn", "stride_pb", "stride_ob", "stride_ab", "stride_mb")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for add in (False, True):
            # Alone; with cos, sin, position ids and places, cos and sin in the dtype of x.
            for count, words in ((0, ("*i64",) * 4), (4, (f"*i{8 * dtype.itemsize}",) * 2 + ("*i64",) * 2)):
                companions = {f"p_{way}{k}": words[k] for way in ("from", "to") for k in range(COMPANIONS)}
                each = [f"{name}{k}" for name in ("width", "stride_b", "stride_n") for k in range(COMPANIONS)]
                specs.append(
                    AotSpec(
                        f"compact_sequence[{'anchor_plus_mean' if add else 'mean'},{NAMES[dtype]},{count}]",
                        compact_kernel,
                        {
                            "p_x": f"*{NAMES[dtype]}",
                            **plan,
                            "p_merged": "*u8" if add else "*i64",
                            "p_y": f"*{NAMES[dtype]}",
                            **companions,
                            **dict.fromkeys((*sizes, *strides, *each), "i32"),
                        },
                        {
                            **dict.fromkeys(("stride_xc", "stride_pn", "stride_os", "stride_as", "stride_ms"), 1),
                            "ADD_ANCHOR": add,
                            "COUNT": count,
                            "UNROLL": UNROLL,
                            "BLOCK_C": BLOCK_C,
                            "BLOCK": 128,
                        },
                        divisible=("p_x", "p_perm", "p_offsets", "p_y", "width", "stride_xb", "stride_xn"),
                    )
                )
    return specs
