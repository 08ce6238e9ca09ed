"""The clustering kernel: all phases in one cooperative launch, or one phase a launch with the same bits.

One program per tile of the upper triangle. With PHASE = ALL a tile of distances stays in registers from the product to
the parents, barriers of the sample's own programs stand between the phases, and the last program to finish resolves
the labels: every program of the grid must be resident at once (a cooperative launch refuses otherwise). As plain
launches the tile is stored or recomputed (STORE), and the launches are the barriers.
"""

# ruff: noqa: SIM102, SIM109 - compile-time and device conditions stay apart

import triton
import triton.language as tl

from .device import (
    BARRIERS,
    STATE,
    WIDE,
    add_densities,
    double,
    find_parents,
    finish_tile,
    gram,
    publish_extremes,
    sample_of,
    tile_at,
    tiles_of,
)
from .prepare import anchor_rows, anchors_pay, init_rows, propose_anchors, verify_anchors
from .resolve import choose_centers, resolve, wanted, wide_densities, wide_parents

ALL, INIT, VERIFY, ANCHOR, TILE, DENSITY, PARENT, CHOOSE, RESOLVE = (tl.constexpr(k) for k in range(9))
SCALARS = ("N", "T", "num_centers", "s2_hi", "s2_lo", "inv_hi", "inv_lo", "lim_hi", "lim_lo")


@triton.jit
def arrive(p_count):
    tl.debug_barrier()  # every thread's stores come before the one thread's release
    tl.atomic_add(p_count, 1, sem="release")


@triton.jit
def wait(p_count, programs):
    """Until all programs have arrived. Returns 0, which the compiler cannot know: what is computed from it after the
    barrier does not occupy registers before it."""
    seen = tl.atomic_add(p_count, 0, sem="acquire")
    while seen < programs:
        seen = tl.atomic_add(p_count, 0, sem="acquire")
    tl.debug_barrier()
    return (seen >> 32).to(tl.int32)


@triton.jit
def fill_unheld(p_cu, p_labels, p_parent, p_rho, p_delta, i_b, start, n, N, T, batch):
    """Rows that malformed boundaries give to no sample."""
    o = tl.arange(0, 128)
    start = start.to(tl.int32)
    after = tl.zeros((), tl.int32) + T
    if i_b + 1 < batch:
        following, _ = sample_of(p_cu, i_b + 1, N, T, True)
        after = following.to(tl.int32)
    if i_b == 0:
        for r0 in range(0, start, 128):
            r = r0 + o
            tl.store(p_labels + r, tl.full((128,), -1, tl.int64), mask=r < start)
            tl.store(p_parent + r, tl.full((128,), -1, tl.int64), mask=r < start)
            tl.store(p_rho + r, tl.zeros((128,), tl.float32), mask=r < start)
            tl.store(p_delta + r, tl.full((128,), float("inf"), tl.float32), mask=r < start)
    for r0 in range(start + n, after, 128):
        r = r0 + o
        tl.store(p_labels + r, tl.full((128,), -1, tl.int64), mask=r < after)
        tl.store(p_parent + r, tl.full((128,), -1, tl.int64), mask=r < after)
        tl.store(p_rho + r, tl.zeros((128,), tl.float32), mask=r < after)
        tl.store(p_delta + r, tl.full((128,), float("inf"), tl.float32), mask=r < after)


@triton.jit
def workspace(i_b, N, p_f32, p_f64, p_i32, p_i64, p_state):
    """A sample's arrays: norm, log-density, delta^2, nearest, is centre, parent, density, best parent; its state."""
    p_f64 += i_b * 2 * N
    p_i32 += i_b * 3 * N
    p_i64 += i_b * 2 * N
    state = p_state + i_b * STATE
    return p_f32 + i_b * N, p_f64, p_f64 + N, p_i32, p_i32 + N, p_i32 + 2 * N, p_i64, p_i64 + N, state


@triton.jit(do_not_specialize=SCALARS)
def vic_kernel(
    p_x,
    p_pos,
    p_valid,
    p_cu,
    p_counts,
    p_labels,
    p_centers,
    p_parent,
    p_rho,
    p_delta,
    p_copy,
    p_anchor,
    p_gain,
    p_f32,
    p_f64,
    p_i32,
    p_i64,
    p_state,
    p_q,
    N,
    T,
    num_centers,
    s_batch,
    s_row,
    s_vb,
    s_vn,
    s_pb,
    s_pn,
    s_pd,
    rate,
    s2_hi,
    s2_lo,
    inv_hi,
    inv_lo,
    lim_hi,
    lim_lo,
    PHASE: tl.constexpr,
    STORE: tl.constexpr,
    VARLEN: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    HAS_POS: tl.constexpr,
    P: tl.constexpr,
    POS64: tl.constexpr,
    COSINE: tl.constexpr,
    SELF: tl.constexpr,
    RELEASED: tl.constexpr,
    KNN: tl.constexpr,
    ROOT_MAX: tl.constexpr,
    EPS: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PREC: tl.constexpr,
    UP: tl.constexpr,
    SLABS: tl.constexpr,
    NP: tl.constexpr,
    JUMPS: tl.constexpr,
    FLOOR: tl.constexpr,
):
    t = tl.program_id(0)
    i_b = tl.program_id(1).to(tl.int64)
    start, n = sample_of(p_cu, i_b, N, T, VARLEN)
    NT = tiles_of(n, BM)
    programs = tl.num_programs(0)
    if PHASE == ALL or PHASE == TILE or PHASE == DENSITY or PHASE == PARENT:
        programs = NT * (NT + 1) // 2
        if t >= programs:
            return

    if VARLEN:
        p_x += start * s_row
        p_pos += start * s_pn
    else:
        p_x += i_b * s_batch
        p_pos += i_b * s_pb
    if HAS_VALID:
        p_valid += i_b * s_vb
    p_copy += i_b * N * D
    p_anchor += i_b * D
    p_gain += i_b * SLABS
    p_norm, p_log, p_d2, p_min, p_cen, p_par, p_sum, p_best, p_mine = workspace(
        i_b, N, p_f32, p_f64, p_i32, p_i64, p_state
    )
    scale2 = double(s2_hi, s2_lo)
    inverse = double(inv_hi, inv_lo)
    limit = double(lim_hi, lim_lo)

    # Norms, and whether offsets are worth removing.
    if PHASE == ALL or PHASE == INIT:
        init_rows(p_x, s_row, p_valid, s_vn, p_norm, p_min, p_sum, p_best, p_mine, n, t, programs, HAS_VALID, D, 8, BD)
        propose_anchors(p_x, s_row, p_valid, s_vn, p_anchor, p_gain, n, t, programs, HAS_VALID, D)
        if VARLEN and t == 0:
            fill_unheld(p_cu, p_labels, p_parent, p_rho, p_delta, i_b, start, n, N, T, tl.num_programs(1))
    if PHASE == VERIFY:
        if anchors_pay(p_gain, D, SLABS):
            verify_anchors(p_x, s_row, p_norm, p_anchor, n, t, programs, D, 16)
    if PHASE == ANCHOR:
        if anchors_pay(p_gain, D, SLABS):
            anchor_rows(p_x, s_row, p_copy, p_anchor, p_norm, n, t, programs, D, 8, BD)

    # Distances: the upper triangle's tile (ti, tj).
    if PHASE == ALL or PHASE == TILE or PHASE == DENSITY or PHASE == PARENT:
        ti, tj = tile_at(t, NT)
        o = tl.arange(0, BM)
        i = ti * BM + o
        j = tj * BM + o
        o_i = tl.minimum(i, tl.maximum(n - 1, 0)).to(tl.int64)
        o_j = tl.minimum(j, tl.maximum(n - 1, 0)).to(tl.int64)
        wide = False
        if PHASE == DENSITY or PHASE == PARENT:
            wide = tl.load(p_mine + WIDE) > 0
        if PHASE == ALL:
            arrive(p_mine + BARRIERS)  # the norms are wanted only after the product
            acc = gram(p_x, s_row, o_i, o_j, D, BM, BK, PREC, UP)
            t += wait(p_mine + BARRIERS, programs)
            if anchors_pay(p_gain, D, SLABS):
                verify_anchors(p_x, s_row, p_norm, p_anchor, n, t, programs, D, 16)
                arrive(p_mine + BARRIERS + 1)
                wait(p_mine + BARRIERS + 1, programs)
                anchor_rows(p_x, s_row, p_copy, p_anchor, p_norm, n, t, programs, D, 8, BD)
                arrive(p_mine + BARRIERS + 2)
                wait(p_mine + BARRIERS + 2, programs)
                acc = gram(p_copy, D, o_i, o_j, D, BM, BK, PREC, UP)
            ti, tj = tile_at(t, NT)
            i = ti * BM + o
            j = tj * BM + o
            q = finish_tile(p_x, s_row, acc, p_norm, p_mine, i, j, n, D, BM, 16 if BM > 64 else 32, FLOOR)
        elif PHASE == TILE or not STORE:
            if anchors_pay(p_gain, D, SLABS):
                acc = gram(p_copy, D, o_i, o_j, D, BM, BK, PREC, UP)
            else:
                acc = gram(p_x, s_row, o_i, o_j, D, BM, BK, PREC, UP)
            q = finish_tile(p_x, s_row, acc, p_norm, p_mine, i, j, n, D, BM, 16 if BM > 64 else 32, FLOOR)
        else:
            p_tile = p_q + (i_b * tl.num_programs(0) + t) * (BM * BM) + o[:, None] * BM + o[None, :]
            q = tl.load(p_tile)
        if PHASE == ALL or PHASE == TILE:
            publish_extremes(p_min, p_mine, q, i, j, ti, tj, n, not SELF and not KNN, ROOT_MAX)
        if PHASE == TILE and STORE:
            tl.store(p_q + (i_b * tl.num_programs(0) + t) * (BM * BM) + o[:, None] * BM + o[None, :], q)
        if PHASE == ALL:
            arrive(p_mine + BARRIERS + 3)
            zero = wait(p_mine + BARRIERS + 3, programs)
            t += zero
            i_b += zero
            start, n = sample_of(p_cu, i_b, N, T, VARLEN)
            p_norm, p_log, p_d2, p_min, p_cen, p_par, p_sum, p_best, p_mine = workspace(
                i_b, N, p_f32, p_f64, p_i32, p_i64, p_state
            )
            ti, tj = tile_at(t, NT)
            i = ti * BM + o
            j = tj * BM + o
            wide = tl.load(p_mine + WIDE, cache_modifier=".cg") > 0

        if PHASE == ALL or PHASE == DENSITY:
            if wide:
                wide_densities(
                    p_x,
                    s_row,
                    p_norm,
                    p_log,
                    p_rho + start,
                    p_mine,
                    n,
                    t,
                    programs,
                    inverse,
                    COSINE,
                    SELF,
                    EPS,
                    KNN,
                    ROOT_MAX,
                    D,
                    8,
                    min(BD, 64),
                )
            elif not KNN:
                add_densities(p_min, p_sum, q, i, j, ti, tj, n, rate, COSINE, SELF, EPS)
        if PHASE == ALL:
            arrive(p_mine + BARRIERS + 4)
            zero = wait(p_mine + BARRIERS + 4, programs)
            t += zero
            i_b += zero
            start, n = sample_of(p_cu, i_b, N, T, VARLEN)
            p_norm, p_log, p_d2, p_min, p_cen, p_par, p_sum, p_best, p_mine = workspace(
                i_b, N, p_f32, p_f64, p_i32, p_i64, p_state
            )
            ti, tj = tile_at(t, NT)
            i = ti * BM + o
            j = tj * BM + o

        if PHASE == ALL or PHASE == PARENT:
            if wide:
                wide_parents(
                    p_x,
                    s_row,
                    p_norm,
                    p_log,
                    p_rho + start,
                    p_d2,
                    p_par,
                    p_pos,
                    s_pn,
                    s_pd,
                    n,
                    t,
                    programs,
                    scale2,
                    limit,
                    COSINE,
                    EPS,
                    RELEASED,
                    HAS_POS,
                    P,
                    D,
                    8,
                    min(BD, 64),
                )
            else:
                find_parents(
                    p_norm,
                    p_min,
                    p_sum,
                    p_best,
                    p_log,
                    p_rho + start,
                    p_pos,
                    s_pn,
                    s_pd,
                    q,
                    i,
                    j,
                    ti,
                    tj,
                    n,
                    inverse,
                    limit,
                    COSINE,
                    SELF,
                    EPS,
                    KNN,
                    RELEASED,
                    HAS_POS,
                    P,
                    POS64,
                    BM,
                )
        if PHASE == ALL:
            arrive(p_mine + BARRIERS + 5)
            zero = wait(p_mine + BARRIERS + 5, programs)
            t += zero
            i_b += zero
            start, n = sample_of(p_cu, i_b, N, T, VARLEN)
            p_norm, p_log, p_d2, p_min, p_cen, p_par, p_sum, p_best, p_mine = workspace(
                i_b, N, p_f32, p_f64, p_i32, p_i64, p_state
            )

    # Centres and labels.
    if PHASE == ALL or PHASE == CHOOSE:
        choose_centers(
            p_norm,
            p_log,
            p_best,
            p_d2,
            p_par,
            p_cen,
            p_mine,
            p_delta + start,
            wanted(p_counts, i_b, num_centers, HAS_COUNTS),
            n,
            t,
            programs,
            scale2,
            COSINE,
            EPS,
            ROOT_MAX,
            8,
            128,
        )
    final = True
    if PHASE == ALL:
        tl.debug_barrier()
        final = tl.atomic_add(p_mine + BARRIERS + 6, 1, sem="acq_rel") == programs - 1
        tl.debug_barrier()
    if PHASE == ALL or PHASE == RESOLVE:
        if final:
            resolve(
                p_norm,
                p_log,
                p_best,
                p_d2,
                p_par,
                p_cen,
                p_mine,
                p_labels + start,
                p_parent + start,
                p_centers + i_b * num_centers,
                n,
                num_centers,
                scale2,
                COSINE,
                EPS,
                RELEASED,
                NP,
                JUMPS,
                128,
            )
