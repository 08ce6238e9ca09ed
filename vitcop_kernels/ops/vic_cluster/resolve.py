"""Device functions behind the distances: samples that need float64, ranks of gamma, centres and labels."""

# ruff: noqa: SIM108 - compile-time and device conditions stay apart

import triton
import triton.language as tl

from .device import INF, NO_BEST, WIDE, WIDEST, ordered, y_of

WHOLE = tl.constexpr(4096)  # padded tokens that one program holds in registers


# ----------------------------------------------------------------------- samples beyond float32: differences in float64
@triton.jit
def q64_of(p_x, s_row, o_r, j, D: tl.constexpr, WR: tl.constexpr, BD: tl.constexpr):
    """q of rows [WR] and token j, by differences."""
    o_d = tl.arange(0, BD)
    acc = tl.zeros((WR, BD), tl.float64)
    for d in range(0, D, BD):
        m = o_d < D - d
        other = tl.load(p_x + j * s_row + d + o_d, mask=m, other=0.0).to(tl.float64)
        mine = tl.load(p_x + o_r[:, None] * s_row + (d + o_d)[None, :], mask=m[None, :], other=0.0).to(tl.float64)
        gap = mine - other[None, :]
        acc += gap * gap
    return tl.sum(acc, 1)


@triton.jit
def pair64(p_x, s_row, p_norm, r, real, j, n, D: tl.constexpr, WR: tl.constexpr, BD: tl.constexpr):
    """q64 with +inf off the pairs of distinct real tokens."""
    norm = tl.load(p_norm + tl.zeros_like(r) + j, cache_modifier=".cg")
    o_r = tl.minimum(r, n - 1).to(tl.int64)
    q = q64_of(p_x, s_row, o_r, tl.cast(j, tl.int64), D, WR, BD)
    return tl.where(real & (norm >= 0.0) & (norm < INF) & (r != j), q, INF)


@triton.jit
def wide_densities(
    p_x,
    s_row,
    p_norm,
    p_log,
    p_rho,
    p_state,
    n,
    t,
    programs,
    inverse,
    COSINE: tl.constexpr,
    SELF: tl.constexpr,
    EPS: tl.constexpr,
    KNN: tl.constexpr,
    ROOT_MAX: tl.constexpr,
    D: tl.constexpr,
    WR: tl.constexpr,
    BD: tl.constexpr,
):
    for r0 in range(t * WR, n, programs * WR):
        r = r0 + tl.arange(0, WR)
        norm = tl.load(p_norm + r, mask=r < n, other=-1.0, cache_modifier=".cg")
        real = (norm >= 0.0) & (norm < INF)
        low = tl.full((WR,), float("inf"), tl.float64)
        most = tl.full((WR,), -1.0, tl.float64)
        for j in range(0, n):
            q = pair64(p_x, s_row, p_norm, r, real, j, n, D, WR, BD)
            low = tl.minimum(low, q)
            most = tl.maximum(most, tl.where(q < INF, q, -1.0))
        if ROOT_MAX:
            top = tl.max(most, 0)
            if top >= 0.0:
                tl.atomic_max(p_state + WIDEST, top.to(tl.int64, bitcast=True) + 1)
        if not KNN:
            some = low < INF
            if SELF:
                base = tl.zeros_like(low) - EPS
                total = tl.full((WR,), 1 << 46, tl.int64)
            else:
                base = y_of(tl.where(some, low, 0.0), COSINE)
                total = tl.zeros((WR,), tl.int64)
            for j in range(0, n):
                q = pair64(p_x, s_row, p_norm, r, real, j, n, D, WR, BD)
                y = y_of(tl.where(q < INF, q, 0.0), COSINE)
                term = tl.exp(tl.maximum(tl.minimum((base - y) * inverse, 0.0), -700.0))
                total += tl.where(q < INF, (term * (2.0**46)).to(tl.int64), 0)
            log = tl.log(tl.maximum(total, 1).to(tl.float64) * (2.0**-46)) - (base + EPS) * inverse
            log = tl.where(real & (total > 0), log, -INF)
            tl.store(p_log + r, log, mask=r < n)
            tl.store(p_rho + r, tl.exp(log).to(tl.float32), mask=r < n)


@triton.jit
def wide_parents(
    p_x,
    s_row,
    p_norm,
    p_log,
    p_rho,
    p_d2,
    p_par,
    p_pos,
    s_pos,
    s_dim,
    n,
    t,
    programs,
    scale2,
    limit,
    COSINE: tl.constexpr,
    EPS: tl.constexpr,
    RELEASED: tl.constexpr,
    HAS_POS: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    WR: tl.constexpr,
    BD: tl.constexpr,
):
    for r0 in range(t * WR, n, programs * WR):
        r = r0 + tl.arange(0, WR)
        norm = tl.load(p_norm + r, mask=r < n, other=-1.0, cache_modifier=".cg")
        real = (norm >= 0.0) & (norm < INF)
        o_r = tl.minimum(r, n - 1).to(tl.int64)
        log = tl.load(p_log + r, mask=r < n, other=-INF, cache_modifier=".cg")
        rho = tl.exp(log).to(tl.float32)
        inside = tl.full((WR,), float("inf"), tl.float64)
        anywhere = tl.full((WR,), float("inf"), tl.float64)
        parent = tl.full((WR,), -1, tl.int32)
        remote = tl.full((WR,), -1, tl.int32)
        for j in range(0, n):
            q = pair64(p_x, s_row, p_norm, r, real, j, n, D, WR, BD)
            log_j = tl.load(p_log + tl.zeros_like(r) + j, cache_modifier=".cg")
            if RELEASED:
                above = tl.exp(log_j).to(tl.float32) >= rho
            else:
                above = (log_j > log) | ((log_j == log) & (j < r))
            q = tl.where(above & (q < INF), y_of(tl.where(q < INF, q, 0.0), COSINE) + EPS, INF)
            gap2 = tl.zeros((WR,), tl.float64)
            if HAS_POS:
                for p in tl.static_range(P):
                    a = tl.load(p_pos + o_r * s_pos + p * s_dim).to(tl.float64)
                    b = tl.load(p_pos + tl.cast(j, tl.int64) * s_pos + p * s_dim).to(tl.float64)
                    gap2 += (a - b) * (a - b)
            better = (q < inside) & ((gap2 <= limit) | (HAS_POS == 0))
            inside = tl.where(better, q, inside)
            parent = tl.where(better, j, parent)
            better = q < anywhere
            anywhere = tl.where(better, q, anywhere)
            remote = tl.where(better, j, remote)
        if not RELEASED:
            parent = tl.where(inside < INF, parent, remote)
        d2 = tl.where(inside < INF, inside * scale2, INF)
        tl.store(p_d2 + r, d2, mask=r < n)
        tl.store(p_par + r, parent, mask=r < n)
        tl.store(p_rho + r, rho, mask=r < n)


# --------------------------------------------------------------------------------------------------------------- ranks
@triton.jit
def outcome_of(
    p_best, p_d2, p_par, p_state, r, n, scale2, COSINE: tl.constexpr, EPS: tl.constexpr, ROOT_MAX: tl.constexpr
):
    """delta^2 (+inf: nobody denser is near) and parent (-1: nobody denser is at a finite distance) of tokens r."""
    if tl.load(p_state + WIDE, cache_modifier=".cg") > 0:
        d2 = tl.load(p_d2 + r, mask=r < n, other=INF, cache_modifier=".cg")
        parent = tl.load(p_par + r, mask=r < n, other=-1, cache_modifier=".cg")
    else:
        best = tl.load(p_best + r, mask=r < n, other=NO_BEST, cache_modifier=".cg")
        key = (best >> 32).to(tl.int32)
        q = (key & 0x7FFFFFFF).to(tl.float32, bitcast=True)
        d2 = tl.where(key < 0, (y_of(tl.where(key < 0, q, 0.0), COSINE).to(tl.float64) + EPS) * scale2, INF)
        parent = tl.where(best == NO_BEST, -1, (best & 0x7FFFFFFF).to(tl.int32))
    if ROOT_MAX:
        bits = tl.load(p_state + WIDEST, cache_modifier=".cg")
        widest = (tl.maximum(bits, 1) - 1).to(tl.float64, bitcast=True)
        widest = tl.where(bits > 0, (y_of(widest, COSINE) + EPS) * scale2, 0.0)
        d2 = tl.where(d2 == INF, widest, d2)
    return d2, parent


@triton.jit
def log_gamma_of(log, d2, parent):
    """+inf for the densest token and those with nobody denser near, -inf for those near nothing at all."""
    gamma = log + 0.5 * tl.log(tl.where((d2 > 0.0) & (d2 < INF), d2, 1.0))
    gamma = tl.where(d2 > 0.0, gamma, -INF)
    gamma = tl.where((d2 == INF) | (parent < 0), INF, gamma)
    return tl.where(log == -INF, -INF, gamma)


@triton.jit
def wanted(p_counts, i_b, num_centers, HAS_COUNTS: tl.constexpr):
    count = num_centers
    if HAS_COUNTS:
        count = tl.minimum(tl.maximum(tl.load(p_counts + i_b).to(tl.int64), 1), num_centers).to(tl.int32)
    return count


@triton.jit
def choose_centers(
    p_norm,
    p_log,
    p_best,
    p_d2,
    p_par,
    p_cen,
    p_state,
    p_delta,
    count,
    n,
    t,
    programs,
    scale2,
    COSINE: tl.constexpr,
    EPS: tl.constexpr,
    ROOT_MAX: tl.constexpr,
    RR: tl.constexpr,
    BJ: tl.constexpr,
):
    """A token is a centre if fewer than `count` come before it in the order of (gamma, rho, lower index)."""
    for r0 in range(t * RR, n, programs * RR):
        r = r0 + tl.arange(0, RR)
        exists = tl.load(p_norm + r, mask=r < n, other=-1.0, cache_modifier=".cg") != -1.0
        d2, parent = outcome_of(p_best, p_d2, p_par, p_state, r, n, scale2, COSINE, EPS, ROOT_MAX)
        log = tl.load(p_log + r, mask=exists, other=-INF, cache_modifier=".cg")
        gamma_r = ordered(log_gamma_of(log, d2, parent))[:, None]
        log_r = ordered(log)[:, None]
        tl.store(p_delta + r, tl.where(exists, tl.sqrt(d2), INF).to(tl.float32), mask=r < n)
        before = tl.zeros((RR,), tl.int32)
        for j0 in range(0, n, BJ):
            j = j0 + tl.arange(0, BJ)
            there = tl.load(p_norm + j, mask=j < n, other=-1.0, cache_modifier=".cg") != -1.0
            d2_j, parent_j = outcome_of(p_best, p_d2, p_par, p_state, j, n, scale2, COSINE, EPS, ROOT_MAX)
            rho_j = tl.load(p_log + j, mask=there, other=-INF, cache_modifier=".cg")
            gamma_j = ordered(log_gamma_of(rho_j, d2_j, parent_j))[None, :]
            log_j = ordered(rho_j)[None, :]
            same = (log_j > log_r) | ((log_j == log_r) & (j[None, :] < r[:, None]))
            better = (gamma_j > gamma_r) | ((gamma_j == gamma_r) & same)
            before += tl.sum((better & there[None, :]).to(tl.int32), 1)
        tl.store(p_cen + r, (exists & (before < count)).to(tl.int32), mask=r < n)


# -------------------------------------------------------------------------------------------------------------- labels
@triton.jit
def resolve_whole(
    p_norm,
    p_log,
    p_best,
    p_d2,
    p_par,
    p_cen,
    p_state,
    p_labels,
    p_parent,
    p_centers,
    n,
    scale2,
    COSINE: tl.constexpr,
    EPS: tl.constexpr,
    RELEASED: tl.constexpr,
    NP: tl.constexpr,
    JUMPS: tl.constexpr,
):
    """A sample that fits into registers. Returns the number of centres."""
    i = tl.arange(0, NP)
    m = i < n
    exists = tl.load(p_norm + i, mask=m, other=-1.0, cache_modifier=".cg") != -1.0
    center = tl.load(p_cen + i, mask=exists, other=0, cache_modifier=".cg") > 0
    _, parent = outcome_of(p_best, p_d2, p_par, p_state, i, n, scale2, COSINE, EPS, False)
    if RELEASED:
        parent = tl.where(parent < 0, 0, parent)
    else:
        log = ordered(tl.load(p_log + i, mask=exists, other=-INF, cache_modifier=".cg"))
        log = tl.where(exists, log, -0x7FFFFFFFFFFFFFFF)
        root = tl.min(tl.where(exists & (log == tl.max(log, 0)), i, NP), 0)
        parent = tl.where(parent < 0, root, parent)
        parent = tl.where(i == root, -1, parent)
    parent = tl.minimum(parent, n - 1)
    tl.store(p_parent + i, tl.where(exists, parent, -1).to(tl.int64), mask=m)

    chosen = center.to(tl.int32)
    ordinal = tl.cumsum(chosen, 0) - 1
    total = tl.sum(chosen, 0)
    pointer = tl.where(center | (parent < 0) | (exists == 0), i, parent)
    for _ in range(JUMPS):
        pointer = tl.gather(pointer, pointer, 0)
    label = tl.gather(tl.where(center, ordinal, -1), pointer, 0)
    tl.store(p_labels + i, tl.where(exists, label, -1).to(tl.int64), mask=m)
    tl.store(p_centers + ordinal, i.to(tl.int64), mask=center)
    return total


@triton.jit
def resolve_in_blocks(
    p_norm,
    p_log,
    p_best,
    p_d2,
    p_par,
    p_cen,
    p_state,
    p_labels,
    p_parent,
    p_centers,
    n,
    scale2,
    COSINE: tl.constexpr,
    EPS: tl.constexpr,
    RELEASED: tl.constexpr,
    NP: tl.constexpr,
    JUMPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same for more tokens, through memory: pointers take the place of p_par, ordinals + 1 that of p_cen."""
    root = tl.full((), NP, tl.int32)
    if not RELEASED:
        top = tl.full((), -0x7FFFFFFFFFFFFFFF, tl.int64)
        for i0 in range(0, n, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            exists = tl.load(p_norm + i, mask=i < n, other=-1.0, cache_modifier=".cg") != -1.0
            log = ordered(tl.load(p_log + i, mask=exists, other=-INF, cache_modifier=".cg"))
            log = tl.where(exists, log, -0x7FFFFFFFFFFFFFFF)
            most = tl.max(log, 0)
            first = tl.min(tl.where(exists & (log == most), i, NP), 0)
            root = tl.where(most > top, first, root)
            top = tl.maximum(top, most)

    total = tl.full((), 0, tl.int32)
    for i0 in range(0, n, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        m = i < n
        exists = tl.load(p_norm + i, mask=m, other=-1.0, cache_modifier=".cg") != -1.0
        center = tl.load(p_cen + i, mask=exists, other=0, cache_modifier=".cg") > 0
        _, parent = outcome_of(p_best, p_d2, p_par, p_state, i, n, scale2, COSINE, EPS, False)
        if RELEASED:
            parent = tl.where(parent < 0, 0, parent)
        else:
            parent = tl.where(parent < 0, root, parent)
            parent = tl.where(i == root, -1, parent)
        parent = tl.minimum(parent, n - 1)
        tl.store(p_parent + i, tl.where(exists, parent, -1).to(tl.int64), mask=m)
        chosen = center.to(tl.int32)
        ordinal = total + tl.cumsum(chosen, 0)
        total += tl.sum(chosen, 0)
        tl.store(p_centers + ordinal - 1, i.to(tl.int64), mask=center)
        tl.store(p_cen + i, tl.where(center, ordinal, 0), mask=m)
        tl.store(p_par + i, tl.where(center | (parent < 0) | (exists == 0), i, parent), mask=m)
    tl.debug_barrier()
    for _ in range(JUMPS):  # a pointer that has jumped already only leads further up
        for i0 in range(0, n, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            pointer = tl.load(p_par + i, mask=i < n, other=0, cache_modifier=".cg")
            tl.store(p_par + i, tl.load(p_par + pointer, cache_modifier=".cg"), mask=i < n)
        tl.debug_barrier()
    for i0 in range(0, n, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        exists = tl.load(p_norm + i, mask=i < n, other=-1.0, cache_modifier=".cg") != -1.0
        pointer = tl.load(p_par + i, mask=i < n, other=0, cache_modifier=".cg")
        label = tl.load(p_cen + pointer, cache_modifier=".cg") - 1
        tl.store(p_labels + i, tl.where(exists, label, -1).to(tl.int64), mask=i < n)
    return total


@triton.jit
def resolve(
    p_norm,
    p_log,
    p_best,
    p_d2,
    p_par,
    p_cen,
    p_state,
    p_labels,
    p_parent,
    p_centers,
    n,
    num_centers,
    scale2,
    COSINE: tl.constexpr,
    EPS: tl.constexpr,
    RELEASED: tl.constexpr,
    NP: tl.constexpr,
    JUMPS: tl.constexpr,
    BC: tl.constexpr,
):
    """Centres in ascending order and the label at the end of each parent chain, by one program."""
    if NP > WHOLE:
        total = resolve_in_blocks(
            p_norm,
            p_log,
            p_best,
            p_d2,
            p_par,
            p_cen,
            p_state,
            p_labels,
            p_parent,
            p_centers,
            n,
            scale2,
            COSINE,
            EPS,
            RELEASED,
            NP,
            JUMPS,
            2048,
        )
    else:
        total = resolve_whole(
            p_norm,
            p_log,
            p_best,
            p_d2,
            p_par,
            p_cen,
            p_state,
            p_labels,
            p_parent,
            p_centers,
            n,
            scale2,
            COSINE,
            EPS,
            RELEASED,
            NP,
            JUMPS,
        )
    for k0 in range(0, num_centers, BC):
        k = k0 + tl.arange(0, BC)
        tl.store(p_centers + k, tl.full((BC,), -1, tl.int64), mask=(k >= total) & (k < num_centers))
