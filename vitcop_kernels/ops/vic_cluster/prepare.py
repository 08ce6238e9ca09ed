"""Device functions before the distances: norms, and offsets of channels that can be removed exactly.

A large common offset makes the Gram product cancel. A channel gives up an offset of few bits (its anchor) only where
every difference from it is exact and fits the dtype, so that no distance changes.
"""

import triton
import triton.language as tl

from .device import HUGE, INF, SAMPLED, SLAB, WIDE


@triton.jit
def row_norms(p_x, s_row, o_r, m_r, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """|x|^2 of rows [BR], +inf where a feature is not finite, and which rows need float64."""
    o_d = tl.arange(0, BD)
    acc = tl.zeros((BR, BD), tl.float32)
    bad = tl.zeros((BR, BD), tl.int32)
    for d in range(0, D, BD):
        m = m_r[:, None] & (o_d < D - d)[None, :]
        x = tl.load(p_x + o_r[:, None] * s_row + (d + o_d)[None, :], mask=m, other=0.0).to(tl.float32)
        bad |= (x - x != 0.0).to(tl.int32)
        acc += x * x
    norm = tl.sum(acc, 1)
    bad = tl.max(bad, 1) > 0
    wide = (norm >= HUGE) | (norm != norm)
    return tl.where(bad, INF, tl.minimum(norm, HUGE)), wide & (bad == 0) & m_r


@triton.jit
def init_rows(
    p_x,
    s_row,
    p_valid,
    s_valid,
    p_norm,
    p_min,
    p_sum,
    p_best,
    p_state,
    n,
    t,
    programs,
    HAS_VALID: tl.constexpr,
    D: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """Norms and neutral elements of this program's share of the rows."""
    for r0 in range(t * BR, n, programs * BR):
        o_r = r0 + tl.arange(0, BR)
        m_r = o_r < n
        norm, wide = row_norms(p_x, s_row, o_r.to(tl.int64), m_r, D, BR, BD)
        if HAS_VALID:
            exists = tl.load(p_valid + o_r.to(tl.int64) * s_valid, mask=m_r, other=0) != 0
            wide = wide & exists
            norm = tl.where(exists, norm, -1.0)
        if tl.max(wide.to(tl.int32), 0) > 0:
            tl.atomic_max(p_state + WIDE, 1)
        tl.store(p_norm + o_r, norm, mask=m_r)
        tl.store(p_min + o_r, tl.full((BR,), 0x7F800000, tl.int32), mask=m_r)
        tl.store(p_sum + o_r, tl.zeros((BR,), tl.int64), mask=m_r)
        tl.store(p_best + o_r, tl.full((BR,), 0x7FFFFFFFFFFFFFFF, tl.int64), mask=m_r)


@triton.jit
def propose_anchors(
    p_x, s_row, p_valid, s_valid, p_anchor, p_gain, n, t, programs, HAS_VALID: tl.constexpr, D: tl.constexpr
):
    """Per channel an offset of few bits that may be worth removing; per slab what it would gain."""
    o_s = tl.arange(0, SAMPLED)
    o_r = (o_s * n.to(tl.int64)) // SAMPLED
    m_r = (o_s < n) | (o_s == 0)
    if HAS_VALID:
        m_r = m_r & (tl.load(p_valid + o_r * s_valid) != 0)
    for slab in range(t, (D + SLAB - 1) // SLAB, programs):
        o_d = slab * SLAB + tl.arange(0, SLAB)
        m = m_r[:, None] & (o_d < D)[None, :]
        x = tl.load(p_x + o_r[:, None] * s_row + o_d[None, :], mask=m, other=0.0).to(tl.float32)
        m = m & (x - x == 0.0)
        count = tl.maximum(tl.sum(m.to(tl.float32), 0), 1.0)
        x = tl.where(m, x, 0.0)
        mean = tl.sum(x / count[None, :], 0)
        gap = tl.where(m, x - mean[None, :], 0.0)
        spread = tl.sum(gap * gap / count[None, :], 0)
        anchor = ((mean.to(tl.int32, bitcast=True) + 0x8000) & -65536).to(tl.float32, bitcast=True)
        worth = (mean * mean > 4.0 * spread) & (mean * mean < HUGE)
        tl.store(p_anchor + o_d, tl.where(worth, anchor, 0.0), mask=o_d < D)
        tl.store(p_gain + slab, tl.sum(tl.where(worth, mean * mean, 0.0) - spread, 0))


@triton.jit
def anchors_pay(p_gain, D: tl.constexpr, SLABS: tl.constexpr):
    """Whether offsets outweigh spreads: the same answer in every program."""
    o_s = tl.arange(0, SLABS)
    return tl.sum(tl.load(p_gain + o_s, mask=o_s < (D + SLAB - 1) // SLAB, other=0.0, cache_modifier=".cg"), 0) > 0.0


@triton.jit
def verify_anchors(p_x, s_row, p_norm, p_anchor, n, t, programs, D: tl.constexpr, BR: tl.constexpr):
    """Keep an anchor only where every difference from it is exact and fits the dtype."""
    for slab in range(t, (D + SLAB - 1) // SLAB, programs):
        o_d = slab * SLAB + tl.arange(0, SLAB)
        c = tl.load(p_anchor + o_d, mask=o_d < D, other=0.0, cache_modifier=".cg")[None, :]
        inexact = tl.zeros((BR, SLAB), tl.int32)
        for r0 in range(0, n, BR):
            o_r = r0 + tl.arange(0, BR)
            norm = tl.load(p_norm + o_r, mask=o_r < n, other=-1.0, cache_modifier=".cg")
            m = ((norm >= 0.0) & (norm < INF))[:, None] & (o_d < D)[None, :]
            raw = tl.load(p_x + o_r.to(tl.int64)[:, None] * s_row + o_d[None, :], mask=m, other=0.0)
            x = raw.to(tl.float32)
            gap = x - c
            taken = gap - x
            lost = (x - (gap - taken)) + (-c - taken)
            fits = gap.to(raw.dtype).to(tl.float32) == gap
            inexact |= (m & ((lost != 0.0) | (fits == 0))).to(tl.int32)
        tl.store(p_anchor + o_d, 0.0, mask=(o_d < D) & (tl.max(inexact, 0) > 0))


@triton.jit
def anchor_rows(
    p_x, s_row, p_copy, p_anchor, p_norm, n, t, programs, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr
):
    """The rows less their anchors, exactly, and their norms."""
    o_d = tl.arange(0, BD)
    for r0 in range(t * BR, n, programs * BR):
        o_r = r0 + tl.arange(0, BR)
        norm = tl.load(p_norm + o_r, mask=o_r < n, other=-1.0, cache_modifier=".cg")
        real = (norm >= 0.0) & (norm < INF)
        acc = tl.zeros((BR, BD), tl.float32)
        for d in range(0, D, BD):
            m = (o_r < n)[:, None] & (o_d < D - d)[None, :]
            raw = tl.load(p_x + o_r.to(tl.int64)[:, None] * s_row + (d + o_d)[None, :], mask=m, other=0.0)
            c = tl.load(p_anchor + d + o_d, mask=o_d < D - d, other=0.0, cache_modifier=".cg")
            x = tl.where(real[:, None], raw.to(tl.float32) - c[None, :], 0.0)
            acc += x * x
            tl.store(p_copy + o_r.to(tl.int64)[:, None] * D + (d + o_d)[None, :], x.to(raw.dtype), mask=m)
        tl.store(p_norm + o_r, tl.sum(acc, 1), mask=real)
