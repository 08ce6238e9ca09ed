"""Device functions of the clustering kernels: one set for the cooperative launch and for the plain ones.

A token's norm carries its state: `|x|^2`, +inf for a token with NaN or inf (infinitely far from all others), -1 for one
that does not exist. `q_ij = |x_i - x_j|^2` comes from Gram tiles of the upper triangle; where that cancels (q below
THETA of the two norms) it is taken again from differences. Everything else about distances is a monotone map of q:
`d^2 = (y + EPS) * s2`, with y = q, or q^2/4 for the cosine.

Error of q: the tensor cores' float32 sums are off by about 2^-20 |x||y|, so by at most some 5e-5 of q unrepaired.
Samples that leave float32's range (norms from HUGE on, distinct tokens closer than FLOOR) are redone from differences
in float64, chosen on the device by their state's slot WIDE.

Sums of densities are integers, so they depend on no order, and exact duplicates tie exactly.
"""

# ruff: noqa: SIM108 - compile-time and device conditions stay apart

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
THETA = tl.constexpr(1.0 / 64)
HUGE = tl.constexpr(2.0**122)  # larger squares need float64
LIMB = tl.constexpr(2.0**23)  # a term of a density is two limbs of 23 bits
NO_KEY = tl.constexpr(0x7FFFFFFF)  # (near, q) of no token
NO_BEST = tl.constexpr(0x7FFFFFFFFFFFFFFF)
# Slots of a sample's state, zero before the first launch.
WIDE, WIDEST, BARRIERS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
STATE = tl.constexpr(16)  # int64 a sample: 128 bytes
SAMPLED = tl.constexpr(8)  # rows that decide whether a channel's offset is worth removing
SLAB = tl.constexpr(64)  # channels looked at together


@triton.jit
def double(high, low):
    """A float64 argument from its two int32 halves (a Python float arrives as float32)."""
    bits = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def sample_of(p_cu, i_b, N, T, VARLEN: tl.constexpr):
    """First row and length of a sample; malformed boundaries are clamped."""
    if VARLEN:
        start = tl.minimum(tl.maximum(tl.load(p_cu + i_b).to(tl.int64), 0), T)
        stop = tl.minimum(tl.maximum(tl.load(p_cu + i_b + 1).to(tl.int64), 0), T)
        n = tl.minimum(tl.maximum(stop - start, 0), N).to(tl.int32)
        start = tl.minimum(start, T - 1)
    else:
        start = i_b.to(tl.int64) * N
        n = N
    return start, n


@triton.jit
def tiles_of(n, BM: tl.constexpr):
    return tl.maximum((n + BM - 1) // BM, 1)


@triton.jit
def tile_at(t, NT):
    """(row, column) of upper-triangular tile t, row-major; the float square root is fixed up in integers."""
    b = 2 * NT + 1
    i = ((b - tl.sqrt((b * b - 8 * t).to(tl.float32))) * 0.5).to(tl.int32)
    i = tl.minimum(tl.maximum(i, 0), NT - 1)
    i = tl.where(i * NT - (i * (i - 1)) // 2 > t, i - 1, i)
    i = tl.where(t >= (i + 1) * NT - ((i + 1) * i) // 2, i + 1, i)
    return i, i + (t - (i * NT - (i * (i - 1)) // 2))


@triton.jit
def ordered(x):
    """int64 that orders as the float64 x does."""
    bits = (x + 0.0).to(tl.int64, bitcast=True)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@triton.jit
def y_of(q, COSINE: tl.constexpr):
    if COSINE:
        q = 0.25 * q * q
    return q


# ----------------------------------------------------------------------------------------------------------- distances
@triton.jit
def gram(
    p_x, s_row, o_i, o_j, D: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr, UP: tl.constexpr
):
    """x_i . x_j, [BM, BM]; D is a multiple of BK."""
    o_k = tl.arange(0, BK)
    p_a = p_x + o_i[:, None] * s_row + o_k[None, :]
    p_b = p_x + o_j[:, None] * s_row + o_k[None, :]
    if UP:  # the interpreter: its dot knows no bfloat16, and its float32 sums depend on the place in the tile
        wide = tl.zeros((BM, BM), tl.float64)
        for _ in range(0, D, BK):
            wide = tl.dot(
                tl.load(p_a).to(tl.float64), tl.trans(tl.load(p_b).to(tl.float64)), wide, out_dtype=tl.float64
            )
            p_a += BK
            p_b += BK
        acc = wide.to(tl.float32)
    else:
        acc = tl.zeros((BM, BM), tl.float32)
        for _ in range(0, D, BK):
            acc = tl.dot(tl.load(p_a), tl.trans(tl.load(p_b)), acc, input_precision=PREC)
            p_a += BK
            p_b += BK
    return acc


@triton.jit
def repair(p_x, s_row, q, o_i, o_j, p_state, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, FLOOR: tl.constexpr):
    """The pairs marked by q < 0 from differences, one column of the tile at a time."""
    o_c = tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    left = tl.min(q, 0)
    beyond = tl.zeros((BM,), tl.int32)
    while tl.min(left, 0) < 0.0:
        c = tl.min(tl.where(left < 0.0, o_c, BM), 0)
        j = tl.sum(tl.where(o_c == c, o_j, 0), 0)
        acc = tl.zeros((BM, BD), tl.float32)
        most = tl.zeros((BM, BD), tl.float32)
        for d in range(0, D, BD):
            m = o_d < D - d
            other = tl.load(p_x + j * s_row + d + o_d, mask=m, other=0.0).to(tl.float32)
            mine = tl.load(p_x + o_i[:, None] * s_row + (d + o_d)[None, :], mask=m[None, :], other=0.0).to(tl.float32)
            gap = mine - other[None, :]
            acc += gap * gap
            most = tl.maximum(most, tl.abs(gap))
        direct = tl.sum(acc, 1)
        vanishing = (direct < FLOOR) & (tl.max(most, 1) > 0.0)
        hit = (q < 0.0) & (o_c == c)[None, :]
        beyond |= tl.max((hit & vanishing[:, None]).to(tl.int32), 1)
        q = tl.where(hit, direct[:, None], q)
        left = tl.where(o_c == c, 0.0, left)
    if tl.max(beyond, 0) > 0:
        tl.atomic_max(p_state + WIDE, 1)
    return q


@triton.jit
def finish_tile(
    p_x,
    s_row,
    acc,
    p_norm,
    p_state,
    i,
    j,
    n,
    D: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """q [BM, BM] from the Gram tile of rows i and columns j; +inf off the pairs of distinct real tokens."""
    last = tl.maximum(n - 1, 0)
    n_i = tl.load(p_norm + i, mask=i < n, other=-1.0, cache_modifier=".cg")
    n_j = tl.load(p_norm + j, mask=j < n, other=-1.0, cache_modifier=".cg")
    both = n_i[:, None] + n_j[None, :]
    q = tl.maximum(both - 2.0 * acc, 0.0)
    q = tl.where(q < tl.maximum(both * THETA, FLOOR), -1.0, q)
    real_i = (n_i >= 0.0) & (n_i < INF)
    real_j = (n_j >= 0.0) & (n_j < INF)
    q = tl.where(real_i[:, None] & real_j[None, :] & (i[:, None] != j[None, :]), q, INF)
    if tl.min(tl.min(q, 1), 0) < 0.0:
        o_i = tl.minimum(i, last).to(tl.int64)
        o_j = tl.minimum(j, last).to(tl.int64)
        q = repair(p_x, s_row, q, o_i, o_j, p_state, D, BM, BD, FLOOR)
    return q


@triton.jit
def publish_extremes(p_min, p_state, q, i, j, ti, tj, n, ROW_MIN: tl.constexpr, ROOT_MAX: tl.constexpr):
    """Each token's nearest distance, and the sample's widest."""
    if ROW_MIN:
        low = tl.min(q, 1).to(tl.int32, bitcast=True)
        tl.atomic_min(p_min + i, low, mask=(i < n) & (low < 0x7F800000), sem="relaxed")
        if ti != tj:
            low = tl.min(q, 0).to(tl.int32, bitcast=True)
            tl.atomic_min(p_min + j, low, mask=(j < n) & (low < 0x7F800000), sem="relaxed")
    if ROOT_MAX:
        most = tl.max(tl.max(tl.where(q < INF, q, -1.0), 1), 0)
        if most >= 0.0:
            tl.atomic_max(p_state + WIDEST, most.to(tl.float64).to(tl.int64, bitcast=True) + 1)


# ------------------------------------------------------------------------------------------------------------- density
@triton.jit
def fixed_terms(x):
    """exp(x), x <= 0, in units of 2^-46 as two int32 limbs that add up over 128 terms.

    Cephes' polynomial gives exp(x) = scale + scale * rest; both are cut apart, since flat densities differ in the last
    digits of terms close to 1.
    """
    x = tl.maximum(tl.minimum(x, 0.0), -80.0)
    n = tl.floor(x * 1.44269504088896341 + 0.5)
    r = tl.fma(n, tl.full(n.shape, 2.12194440e-4, tl.float32), tl.fma(n, tl.full(n.shape, -0.693359375, tl.float32), x))
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    rest = p * (r * r) + r
    scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True) * LIMB
    rest = rest * scale
    high = scale.to(tl.int32)
    high_rest = rest.to(tl.int32)
    low = ((scale - high.to(tl.float32)) * LIMB).to(tl.int32)
    low_rest = ((rest - high_rest.to(tl.float32)) * LIMB).to(tl.int32)
    return high + high_rest, low + low_rest


@triton.jit
def sum_terms(x, counts, axis: tl.constexpr):
    """Sum of exp(x) where `counts`, exact in units of 2^-46."""
    high, low = fixed_terms(x)
    high = tl.sum(tl.where(counts, high, 0), axis)
    low = tl.sum(tl.where(counts, low, 0), axis)
    return (high.to(tl.int64) << 23) + low.to(tl.int64)


@triton.jit
def reference_of(p_min, r, n, COSINE: tl.constexpr, SELF: tl.constexpr, EPS: tl.constexpr):
    """y around which a token's terms are summed: its largest term becomes 1."""
    q = tl.load(p_min + r, mask=r < n, other=0x7F800000, cache_modifier=".cg").to(tl.float32, bitcast=True)
    if SELF:
        base = tl.zeros_like(q) - EPS
    else:
        base = y_of(q, COSINE)
    return base


@triton.jit
def add_densities(p_min, p_sum, q, i, j, ti, tj, n, rate, COSINE: tl.constexpr, SELF: tl.constexpr, EPS: tl.constexpr):
    y = y_of(q, COSINE)
    base = reference_of(p_min, i, n, COSINE, SELF, EPS)
    total = sum_terms((base[:, None] - y) * rate, q < INF, 1)
    tl.atomic_add(p_sum + i, total, mask=(i < n) & (total > 0), sem="relaxed")
    if ti != tj:
        base = reference_of(p_min, j, n, COSINE, SELF, EPS)
        total = sum_terms((base[None, :] - y) * rate, q < INF, 0)
        tl.atomic_add(p_sum + j, total, mask=(j < n) & (total > 0), sem="relaxed")


@triton.jit
def density_of(
    p_norm,
    p_min,
    p_sum,
    p_log,
    r,
    n,
    inverse,
    COSINE: tl.constexpr,
    SELF: tl.constexpr,
    EPS: tl.constexpr,
    KNN: tl.constexpr,
):
    """log-density in float64 (-inf: near nothing) and density in float32."""
    norm = tl.load(p_norm + r, mask=r < n, other=-1.0, cache_modifier=".cg")
    real = (norm >= 0.0) & (norm < INF)
    if KNN:
        log = tl.load(p_log + r, mask=real, other=-INF, cache_modifier=".cg")
        rho = tl.exp(log).to(tl.float32)
    else:
        total = tl.load(p_sum + r, mask=r < n, other=0, cache_modifier=".cg")
        if SELF:
            mass = (total + (1 << 46)).to(tl.float64) * (2.0**-46)
            log = tl.log(mass)
            rho = mass.to(tl.float32)
        else:
            base = reference_of(p_min, r, n, COSINE, SELF, EPS)
            some = total > 0
            mass = tl.where(some, total, 1).to(tl.float64) * (2.0**-46)
            shift = (tl.where(some, base, 0.0).to(tl.float64) + EPS) * inverse
            log = tl.where(some, tl.log(mass) - shift, -INF)
            rho = tl.exp(log).to(tl.float32)
    return tl.where(real, log, -INF), tl.where(real, rho, 0.0)


# ----------------------------------------------------------------------------------------------------- delta and parent
@triton.jit
def decide_near(close, p_pos, s_pos, s_dim, i, j, limit, P: tl.constexpr, BM: tl.constexpr):
    """The pairs in doubt, close < 0, in float64: a column at a time."""
    o_c = tl.arange(0, BM)
    left = tl.min(close, 0)
    while tl.min(left, 0) < 0:
        c = tl.min(tl.where(left < 0, o_c, BM), 0)
        j_c = tl.sum(tl.where(o_c == c, j, 0), 0)
        gap2 = tl.zeros((BM,), tl.float64)
        for p in tl.static_range(P):
            a = tl.load(p_pos + i * s_pos + p * s_dim).to(tl.float64)
            b = tl.load(p_pos + j_c * s_pos + p * s_dim).to(tl.float64)
            gap2 += (a - b) * (a - b)
        close = tl.where((close < 0) & (o_c == c)[None, :], (gap2 <= limit).to(tl.int32)[:, None], close)
        left = tl.where(o_c == c, 0, left)
    return close


@triton.jit
def near(p_pos, s_pos, s_dim, i, j, limit, P: tl.constexpr, POS64: tl.constexpr, BM: tl.constexpr):
    """[BM, BM]: |p_i - p_j|^2 <= limit; in float32 where that leaves no doubt, else in float64."""
    if POS64:
        close = tl.full((BM, BM), -1, tl.int32)
    else:
        gap2 = tl.zeros((BM, BM), tl.float32)
        for p in tl.static_range(P):
            a = tl.load(p_pos + i * s_pos + p * s_dim).to(tl.float32)
            b = tl.load(p_pos + j * s_pos + p * s_dim).to(tl.float32)
            gap = a[:, None] - b[None, :]
            gap2 += gap * gap
        limit32 = limit.to(tl.float32)
        doubt = tl.abs(gap2 - limit32) <= limit32 * ((P + 4) * 2.0**-23)
        close = tl.where(doubt, -1, (gap2 <= limit32).to(tl.int32))
    if tl.min(tl.min(close, 1), 0) < 0:
        close = decide_near(close, p_pos, s_pos, s_dim, i, j, limit, P, BM)
    return close > 0


@triton.jit
def publish_nearest(p_best, key, own, other, n, axis: tl.constexpr):
    """Smallest key and the lowest index that has it, merged into one 64-bit minimum."""
    low = tl.min(key, axis)
    if axis == 1:
        index = tl.min(tl.where(key == low[:, None], other[None, :], 0x7FFFFFFF), 1)
    else:
        index = tl.min(tl.where(key == low[None, :], other[:, None], 0x7FFFFFFF), 0)
    best = (low.to(tl.int64) << 32) | index.to(tl.int64)
    tl.atomic_min(p_best + own, best, mask=(own < n) & (low < NO_KEY), sem="relaxed")


@triton.jit
def keys_of(q, above, close, RELEASED: tl.constexpr, HAS_POS: tl.constexpr):
    """int32 that orders (near before far, then q); the released code knows no far parents."""
    key = q.to(tl.int32, bitcast=True)
    if HAS_POS:
        if RELEASED:
            above = above & close
            key = key | -2147483648
        else:
            key = tl.where(close, key | -2147483648, key)
    else:
        key = key | -2147483648
    return tl.where(above & (q < INF), key, NO_KEY)


@triton.jit
def find_parents(
    p_norm,
    p_min,
    p_sum,
    p_best,
    p_log,
    p_rho,
    p_pos,
    s_pos,
    s_dim,
    q,
    i,
    j,
    ti,
    tj,
    n,
    inverse,
    limit,
    COSINE: tl.constexpr,
    SELF: tl.constexpr,
    EPS: tl.constexpr,
    KNN: tl.constexpr,
    RELEASED: tl.constexpr,
    HAS_POS: tl.constexpr,
    P: tl.constexpr,
    POS64: tl.constexpr,
    BM: tl.constexpr,
):
    """Nearest denser token of the tile for each row and column; diagonal tiles also publish the densities."""
    log_i, rho_i = density_of(p_norm, p_min, p_sum, p_log, i, n, inverse, COSINE, SELF, EPS, KNN)
    log_j, rho_j = density_of(p_norm, p_min, p_sum, p_log, j, n, inverse, COSINE, SELF, EPS, KNN)
    close = i[:, None] >= 0
    if HAS_POS:
        last = tl.maximum(n - 1, 0)
        close = near(
            p_pos, s_pos, s_dim, tl.minimum(i, last).to(tl.int64), tl.minimum(j, last).to(tl.int64), limit, P, POS64, BM
        )
    if RELEASED:
        above = rho_j[None, :] >= rho_i[:, None]
        below = rho_j[None, :] <= rho_i[:, None]
    else:
        k_i = ordered(log_i)[:, None]
        k_j = ordered(log_j)[None, :]
        above = (k_j > k_i) | ((k_j == k_i) & (j[None, :] < i[:, None]))
        below = above == 0
    publish_nearest(p_best, keys_of(q, above, close, RELEASED, HAS_POS), i, j, n, 1)
    if ti != tj:
        publish_nearest(p_best, keys_of(q, below, close, RELEASED, HAS_POS), j, i, n, 0)
    else:
        tl.store(p_log + i, log_i, mask=i < n)
        tl.store(p_rho + i, rho_i, mask=i < n)
