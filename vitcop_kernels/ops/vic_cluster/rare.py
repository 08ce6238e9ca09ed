"""Options off the beaten track, as extra launches and torch ops between the phases; none of them reads a value."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._triton import cdiv, launch, next_power_of_2

from .device import INF, STATE, WIDE, double, finish_tile, gram, sample_of, y_of
from .prepare import anchors_pay
from .resolve import outcome_of, pair64

CHUNK_BYTES = 256 << 20  # of distances held at once for density="knn"


class Args(NamedTuple):
    """Arguments of vic_kernel, in its order."""

    x: Tensor
    positions: Tensor
    valid: Tensor
    cu_seqlens: Tensor
    counts: Tensor
    labels: Tensor
    centers: Tensor
    parent: Tensor
    rho: Tensor
    delta: Tensor
    copy: Tensor
    anchors: Tensor
    gains: Tensor
    norms: Tensor
    doubles: Tensor
    ints: Tensor
    longs: Tensor
    state: Tensor
    scratch: Tensor
    n: int
    total: int
    num_centers: int
    s_batch: int
    s_row: int
    s_vb: int
    s_vn: int
    s_pb: int
    s_pn: int
    s_pd: int
    rate: float
    s2_hi: int
    s2_lo: int
    inv_hi: int
    inv_lo: int
    lim_hi: int
    lim_lo: int


# -------------------------------------------------------------------------------------------------------------- cosine
@triton.jit
def unit_kernel(p_x, p_u, N, s_b, s_n, s_d, D, W, BR: tl.constexpr, BD: tl.constexpr):
    i_b = tl.program_id(1).to(tl.int64)
    r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    o_d = tl.arange(0, BD)
    p_row = p_x + i_b * s_b + r[:, None] * s_n
    total = tl.zeros((BR,), tl.float64)
    for d in range(0, D, BD):
        m = (r < N)[:, None] & (o_d < D - d)[None, :]
        x = tl.load(p_row + (d + o_d)[None, :] * s_d, mask=m, other=0.0).to(tl.float64)
        total += tl.sum(x * x, 1)
    norm = tl.sqrt(total)
    norm = tl.where(norm == 0.0, 1.0, norm)
    for d in range(0, W, BD):
        m = (r < N)[:, None] & (o_d < D - d)[None, :]
        x = tl.load(p_row + (d + o_d)[None, :] * s_d, mask=m, other=0.0).to(tl.float64)
        out = (r < N)[:, None] & (o_d < W - d)[None, :]
        tl.store(p_u + (i_b * N + r[:, None]) * W + (d + o_d)[None, :], (x / norm[:, None]).to(tl.float32), mask=out)


def unit_rows(x: Tensor) -> Tensor:
    """Rows over their norms in float32, padded with zeros; rows with NaN or inf keep a NaN."""
    width = max(16, cdiv(x.shape[-1], 16) * 16)
    unit = torch.empty((*x.shape[:-1], width), dtype=torch.float32, device=x.device)
    batched = x if x.dim() == 3 else x[None]
    size, n, d = batched.shape
    block = min(128, next_power_of_2(width))
    launch(unit_kernel, (cdiv(n, 8), size), batched, unit, n, *batched.stride(), d, width, BR=8, BD=block, num_warps=4)
    return unit


# ----------------------------------------------------------------------------------------------------------- distances
@triton.jit
def tile64(p_x, s_row, p_norm, i, j, n, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """[BM, BM] squared distances of tokens i and j by differences in float64, a column at a time."""
    o_c = tl.arange(0, BM)
    q = tl.full((BM, BM), float("inf"), tl.float64)
    norm = tl.load(p_norm + i, mask=i < n, other=-1.0)
    real = (norm >= 0.0) & (norm < INF)
    for c in range(0, BM):
        column = tl.sum(tl.where(o_c == c, j, 0), 0)
        if column < n:
            found = pair64(p_x, s_row, p_norm, i, real, column, n, D, BM, BD)
            q = tl.where((o_c == c)[None, :], found[:, None], q)
    return q


@triton.jit
def any_tile(
    p_x,
    s_row,
    p_copy,
    p_gain,
    p_norm,
    p_state,
    i,
    j,
    n,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
    UP: tl.constexpr,
    SLABS: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """q [BM, BM] in float64 of any rows and columns: the bits of the triangle's tiles; an index >= n is nobody."""
    if tl.load(p_state + WIDE) > 0:
        q = tile64(p_x, s_row, p_norm, i, j, n, D, BM, 32)
    else:
        o_i = tl.minimum(i, tl.maximum(n - 1, 0)).to(tl.int64)
        o_j = tl.minimum(j, tl.maximum(n - 1, 0)).to(tl.int64)
        if anchors_pay(p_gain, D, SLABS):
            acc = gram(p_copy, D, o_i, o_j, D, BM, BK, PREC, UP)
        else:
            acc = gram(p_x, s_row, o_i, o_j, D, BM, BK, PREC, UP)
        q = finish_tile(p_x, s_row, acc, p_norm, p_state, i, j, n, D, BM, 32, FLOOR).to(tl.float64)
    return q


@triton.jit(do_not_specialize=["N", "T", "first", "rows", "s2_hi", "s2_lo"])
def pairs_kernel(
    p_x,
    p_cu,
    p_copy,
    p_gain,
    p_f32,
    p_state,
    p_out,
    N,
    T,
    first,
    rows,
    s_batch,
    s_row,
    s2_hi,
    s2_lo,
    VARLEN: tl.constexpr,
    COSINE: tl.constexpr,
    SELF: tl.constexpr,
    EPS: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
    UP: tl.constexpr,
    SLABS: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """d^2 of rows [first, first + rows) to all tokens."""
    i_b = tl.program_id(2).to(tl.int64)
    start, n = sample_of(p_cu, i_b, N, T, VARLEN)
    p_x += start * s_row if VARLEN else i_b * s_batch
    o = tl.arange(0, BM)
    local = tl.program_id(0) * BM + o
    i = first + local
    j = tl.program_id(1) * BM + o
    p_norm = p_f32 + i_b * N
    q = any_tile(
        p_x,
        s_row,
        p_copy + i_b * N * D,
        p_gain + i_b * SLABS,
        p_norm,
        p_state + i_b * STATE,
        i,
        j,
        n,
        D,
        BM,
        BK,
        PREC,
        UP,
        SLABS,
        FLOOR,
    )
    d2 = tl.where(q < INF, (y_of(tl.where(q < INF, q, 0.0), COSINE) + EPS) * double(s2_hi, s2_lo), INF)
    if SELF:
        norm = tl.load(p_norm + i, mask=i < n, other=-1.0)
        d2 = tl.where((i[:, None] == j[None, :]) & ((norm >= 0.0) & (norm < INF))[:, None], 0.0, d2)
    p_row = p_out + (i_b * rows + local[:, None]) * N
    tl.store(p_row + j[None, :], d2, mask=(local < rows)[:, None] & (j < N)[None, :])


def neighbour_densities(a: Args, shared: dict[str, Any], k: int) -> None:
    """log-density of density="knn": minus the mean of the k smallest d^2, into a.doubles[:, 0]."""
    batch, _, n = a.doubles.shape
    tile = 32
    rows = max(tile, min(cdiv(n, tile), CHUNK_BYTES // (8 * batch * n * tile)) * tile)
    for first in range(0, n, rows):
        count = min(rows, n - first)
        d2 = torch.empty((batch, count, n), dtype=torch.float64, device=a.x.device)
        launch(
            pairs_kernel,
            (cdiv(count, tile), cdiv(n, tile), batch),
            a.x,
            a.cu_seqlens,
            a.copy,
            a.gains,
            a.norms,
            a.state,
            d2,
            a.n,
            a.total,
            first,
            count,
            a.s_batch,
            a.s_row,
            a.s2_hi,
            a.s2_lo,
            **chosen(shared, "VARLEN COSINE SELF EPS D BK PREC UP SLABS FLOOR"),
            BM=tile,
            num_warps=4,
        )
        nearest = d2.topk(k, largest=False).values  # ascending: equal sets give equal sums
        finite = nearest.isfinite()
        found = finite.sum(-1)
        mean = nearest.masked_fill(~finite, 0.0).sum(-1) / found.clamp(min=1)
        a.doubles[:, 0, first : first + count] = torch.where(found > 0, -mean, -float("inf"))


def chosen(constants: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: constants[name] for name in names.split()}


# ------------------------------------------------------------------------------------------------------------- centres
@triton.jit(do_not_specialize=["N", "T", "s2_hi", "s2_lo"])
def gamma_kernel(
    p_cu,
    p_f32,
    p_f64,
    p_i32,
    p_i64,
    p_state,
    p_rho,
    p_delta,
    p_key,
    N,
    T,
    s2_hi,
    s2_lo,
    VARLEN: tl.constexpr,
    COSINE: tl.constexpr,
    EPS: tl.constexpr,
    ROOT_MAX: tl.constexpr,
    BR: tl.constexpr,
):
    """delta, and -gamma as the authors' float32 code has it; padding comes last, non-finite tokens before it."""
    i_b = tl.program_id(1).to(tl.int64)
    start, n = sample_of(p_cu, i_b, N, T, VARLEN)
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    norm = tl.load(p_f32 + i_b * N + r, mask=r < n, other=-1.0)
    d2, _ = outcome_of(
        p_i64 + (2 * i_b + 1) * N,
        p_f64 + (2 * i_b + 1) * N,
        p_i32 + (3 * i_b + 2) * N,
        p_state + i_b * STATE,
        r,
        n,
        double(s2_hi, s2_lo),
        COSINE,
        EPS,
        ROOT_MAX,
    )
    delta = tl.where(norm == -1.0, INF, tl.sqrt(d2)).to(tl.float32)
    rho = tl.load(p_rho + start + r, mask=r < n, other=0.0)
    far = delta == INF  # or too large for float32 alone: 0 * inf would be sorted behind padding
    key = tl.where(far, -INF, -(rho * tl.where(far, 1.0, delta)))
    key = tl.where(norm == INF, 1.0, key)
    key = tl.where(norm == -1.0, INF, key)
    tl.store(p_delta + start + r, delta, mask=r < n)
    tl.store(p_key + i_b * N + r, key, mask=r < N)


def released_centers(a: Args, shared: dict[str, Any], counts: Tensor | None) -> None:
    """Flags of the first centres of `argsort(-gamma)`, a row at a time: only the same call orders ties alike."""
    batch, _, n = a.ints.shape
    key = torch.empty((batch, n), dtype=torch.float32, device=a.x.device)
    launch(
        gamma_kernel,
        (cdiv(n, 128), batch),
        a.cu_seqlens,
        a.norms,
        a.doubles,
        a.ints,
        a.longs,
        a.state,
        a.rho,
        a.delta,
        key,
        a.n,
        a.total,
        a.s2_hi,
        a.s2_lo,
        **chosen(shared, "VARLEN COSINE EPS ROOT_MAX"),
        BR=128,
        num_warps=4,
    )
    place = torch.arange(n, device=a.x.device)
    first: int | Tensor = a.num_centers
    if counts is not None:
        first = counts.to(torch.int64).clamp(1, a.num_centers)[:, None]
    flags = (place.expand(batch, n) < first).to(torch.int32)
    order = torch.stack([torch.argsort(row) for row in key])
    a.ints[:, 1].scatter_(1, order, flags)


# -------------------------------------------------------------------------------------------------------------- labels
@triton.jit(do_not_specialize=["N", "T", "num_centers"])
def nearest_kernel(
    p_x,
    p_cu,
    p_copy,
    p_gain,
    p_f32,
    p_i32,
    p_state,
    p_centers,
    p_labels,
    N,
    T,
    num_centers,
    s_batch,
    s_row,
    VARLEN: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
    UP: tl.constexpr,
    SLABS: tl.constexpr,
    FLOOR: tl.constexpr,
    COSINE: tl.constexpr,
    EPS: tl.constexpr,
):
    """Label of the nearest centre, the lower of equals; a centre keeps its own, a token far from all gets 0."""
    i_b = tl.program_id(1).to(tl.int64)
    start, n = sample_of(p_cu, i_b, N, T, VARLEN)
    p_x += start * s_row if VARLEN else i_b * s_batch
    p_norm = p_f32 + i_b * N
    o = tl.arange(0, BM)
    i = tl.program_id(0) * BM + o
    best = tl.full((BM,), float("inf"), tl.float64)
    label = tl.zeros((BM,), tl.int64)
    for k0 in range(0, num_centers, BM):
        j = tl.load(p_centers + i_b * num_centers + k0 + o, mask=k0 + o < num_centers, other=-1).to(tl.int32)
        q = any_tile(
            p_x,
            s_row,
            p_copy + i_b * N * D,
            p_gain + i_b * SLABS,
            p_norm,
            p_state + i_b * STATE,
            i,
            tl.where(j < 0, N, j),
            n,
            D,
            BM,
            BK,
            PREC,
            UP,
            SLABS,
            FLOOR,
        )
        q = tl.where(q < INF, y_of(tl.where(q < INF, q, 0.0), COSINE) + EPS, INF)
        low = tl.min(q, 1)
        at = tl.min(tl.where(q == low[:, None], o[None, :], BM), 1)
        label = tl.where(low < best, (k0 + at).to(tl.int64), label)
        best = tl.minimum(low, best)
    exists = tl.load(p_norm + i, mask=i < n, other=-1.0) != -1.0
    center = tl.load(p_i32 + (3 * i_b + 1) * N + i, mask=exists, other=1) > 0
    tl.store(p_labels + start + i, label, mask=exists & (center == 0))


def nearest_centers(a: Args, shared: dict[str, Any]) -> None:
    batch, _, n = a.ints.shape
    tile = 32
    launch(
        nearest_kernel,
        (cdiv(n, tile), batch),
        a.x,
        a.cu_seqlens,
        a.copy,
        a.gains,
        a.norms,
        a.ints,
        a.state,
        a.centers,
        a.labels,
        a.n,
        a.total,
        a.num_centers,
        a.s_batch,
        a.s_row,
        **chosen(shared, "VARLEN COSINE EPS D BK PREC UP SLABS FLOOR"),
        BM=tile,
        num_warps=4,
    )
