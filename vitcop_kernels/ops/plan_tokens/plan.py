"""The second launch of plan_tokens: one program per sample works through its clusters and tokens, a block at a time.

What one step writes to scratch and another reads lies in global memory of this program alone, a barrier between them.
"""

import triton
import triton.language as tl

from vitcop_kernels._radix import next_digit, order_key, order_key64

EXACT = tl.constexpr(0)
FLOOR = tl.constexpr(1)
RELEASED = tl.constexpr(2)
NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # the key of what may not be chosen


@triton.jit
def _count_digits(b_key, m_key, prefix, SHIFT: tl.constexpr, KNOWN: tl.constexpr):
    """Histogram of one byte of signed keys, among those whose higher bytes (KNOWN of them) are `prefix`."""
    b_key = b_key ^ -0x8000000000000000
    if KNOWN > 0:
        m_key = m_key & (((b_key >> (SHIFT + 8)) & ((1 << (8 * KNOWN)) - 1)) == prefix)
    return tl.histogram(((b_key >> SHIFT) & 255).to(tl.int32), 256, mask=m_key)


@triton.jit
def _kth(p_keys, count, rank, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """The rank-th smallest of `count` keys, and how many of those equal to it are within the rank. rank >= 1."""
    threshold = tl.full((), 0, tl.int64)
    for byte in tl.static_range(BYTES):
        b_count = tl.zeros((256,), tl.int32)
        for o in range(0, count, BLOCK):
            o_i = o + tl.arange(0, BLOCK)
            b_key = tl.load(p_keys + o_i, mask=o_i < count, other=0)
            b_count += _count_digits(b_key, o_i < count, threshold, 8 * (BYTES - 1 - byte), byte)
        digit, rank = next_digit(b_count, rank)
        threshold = (threshold << 8) | digit
    if BYTES == 8:
        threshold = threshold ^ -0x8000000000000000
    return threshold, rank


@triton.jit
def _chosen(b_key, m_key, threshold, ties, ties_before, any_wanted):
    """Which of a block belong to the chosen, and how many ties have been seen after it."""
    m_tie = m_key & (b_key == threshold)
    b_tie = ties_before + tl.cumsum(m_tie.to(tl.int32), 0)
    m_chosen = (m_key & (b_key < threshold)) | (m_tie & (b_tie <= ties))
    return m_chosen & (m_key & (any_wanted > 0)), ties_before + tl.sum(m_tie.to(tl.int32), 0)


@triton.jit
def _dealt(p_size, p_count, num_clusters, rounds, BLOCK: tl.constexpr):
    """Elites that so many full rounds deal."""
    dealt = tl.full((), 0, tl.int32)
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < num_clusters
        b_room = tl.load(p_size + o_c, mask=m_c, other=0) - 1 - tl.load(p_count + o_c, mask=m_c, other=0)
        dealt += tl.sum(tl.minimum(tl.maximum(b_room, 0), rounds), 0)
    return dealt


@triton.jit
def _floor_quotas(
    p_size,
    p_count,
    p_keys,
    num_clusters,
    elite_budget,
    num_clustered,
    EXACT_: tl.constexpr,
    ROUND_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Eq. 5 in integers; "exact" deals what the floors lose in rounds by descending remainder. Returns what is left."""
    n = tl.maximum(num_clustered, 1).to(tl.int64)
    missing = elite_budget
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < num_clusters
        b_share = tl.load(p_size + o_c, mask=m_c, other=0).to(tl.int64) * elite_budget
        b_count = (b_share // n).to(tl.int32)
        tl.store(p_count + o_c, b_count, mask=m_c)
        missing -= tl.sum(b_count, 0)
    tl.debug_barrier()
    if EXACT_:
        full = tl.full((), 0, tl.int32)
        if _dealt(p_size, p_count, num_clusters, 1, BLOCK) <= missing:
            for bit in tl.static_range(ROUND_BITS):
                rounds = full + (1 << (ROUND_BITS - 1 - bit))
                if rounds <= num_clusters:
                    full = tl.where(_dealt(p_size, p_count, num_clusters, rounds, BLOCK) <= missing, rounds, full)
        left = missing - _dealt(p_size, p_count, num_clusters, full, BLOCK)
        num_open = tl.full((), 0, tl.int32)
        for c in range(0, num_clusters, BLOCK):
            o_c = c + tl.arange(0, BLOCK)
            m_c = o_c < num_clusters
            b_size = tl.load(p_size + o_c, mask=m_c, other=0)
            m_open = m_c & (b_size - 1 - tl.load(p_count + o_c, mask=m_c, other=0) > full)
            b_key = tl.where(m_open, n - (b_size.to(tl.int64) * elite_budget) % n, 0xFFFFFFFF)
            tl.store(p_keys + o_c, b_key, mask=m_c)
            num_open += tl.sum(m_open.to(tl.int32), 0)
        tl.debug_barrier()
        wanted = tl.minimum(left, num_open)
        threshold, ties = _kth(p_keys, num_clusters, wanted, 4, BLOCK)
        ties_before = tl.full((), 0, tl.int32)
        for c in range(0, num_clusters, BLOCK):
            o_c = c + tl.arange(0, BLOCK)
            m_c = o_c < num_clusters
            b_key = tl.load(p_keys + o_c, mask=m_c, other=0)
            m_more, ties_before = _chosen(b_key, m_c, threshold, ties, ties_before, wanted)
            b_count = tl.load(p_count + o_c, mask=m_c, other=0)
            b_room = tl.maximum(tl.load(p_size + o_c, mask=m_c, other=0) - 1 - b_count, 0)
            tl.store(p_count + o_c, b_count + tl.minimum(b_room, full) + m_more.to(tl.int32), mask=m_c)
        tl.debug_barrier()
    return missing


@triton.jit
def _sum_keys(p_total, o_c, m_c, sign):
    """Summed scores to keys, ascending (sign 1) or descending (-1); a NaN sum counts as inf."""
    b_total = tl.load(p_total + o_c, mask=m_c, other=0.0)
    return order_key64(tl.where(b_total != b_total, float("inf"), b_total) * sign)


@triton.jit
def _released_quotas(
    p_size, p_total, p_count, p_keys, num_clusters, elite_budget, num_clustered, num_present, BLOCK: tl.constexpr
):
    """float32 weights, round half to even, one repair pass over the clusters by summed score."""
    free = tl.maximum(num_clustered - num_present, 1).to(tl.float32)
    diff = elite_budget
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < num_clusters
        b_cap = tl.maximum(tl.load(p_size + o_c, mask=m_c, other=0) - 1, 0)
        b_weight = tl.div_rn(b_cap.to(tl.float32), tl.zeros((BLOCK,), tl.float32) + free)
        # The product rounded once to float32, in a form that no compiler contracts with what follows.
        b_ideal = (b_weight.to(tl.float64) * elite_budget.to(tl.float64)).to(tl.float32)
        b_count = b_ideal.to(tl.int32)
        b_part = b_ideal - b_count.to(tl.float32)
        b_count += ((b_part > 0.5) | ((b_part == 0.5) & ((b_count & 1) == 1))).to(tl.int32)
        b_count = tl.minimum(b_count, b_cap)
        tl.store(p_count + o_c, b_count, mask=m_c)
        diff -= tl.sum(tl.where(m_c, b_count, 0), 0)
    tl.debug_barrier()
    sign = tl.where(diff > 0, 1, -1)
    num_able = tl.full((), 0, tl.int32)
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < num_clusters
        b_count = tl.load(p_count + o_c, mask=m_c, other=0)
        b_cap = tl.maximum(tl.load(p_size + o_c, mask=m_c, other=0) - 1, 0)
        m_able = m_c & (tl.where(sign > 0, b_cap - b_count, b_count) > 0)
        tl.store(p_keys + o_c, tl.where(m_able, _sum_keys(p_total, o_c, m_c, sign), 0x7FFFFFFFFFFFFFFF), mask=m_c)
        num_able += tl.sum(m_able.to(tl.int32), 0)
    tl.debug_barrier()
    wanted = tl.minimum(tl.abs(diff), num_able)
    threshold, ties = _kth(p_keys, num_clusters, wanted, 8, BLOCK)
    ties_before = tl.full((), 0, tl.int32)
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < num_clusters
        m_change, ties_before = _chosen(
            tl.load(p_keys + o_c, mask=m_c, other=0), m_c, threshold, ties, ties_before, wanted
        )
        b_count = tl.load(p_count + o_c, mask=m_c, other=0)
        tl.store(p_count + o_c, b_count + tl.where(m_change, sign, 0), mask=m_c)
    tl.debug_barrier()


@triton.jit
def _share_clusters(p_size, p_total, p_shared, p_keys, num_clusters, num_present, whole, budget, BLOCK: tl.constexpr):
    """With more clusters than budget: all but the budget-1 of smallest summed score share one segment."""
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < num_clusters
        m_present = tl.load(p_size + o_c, mask=m_c, other=0) > 0
        tl.store(p_keys + o_c, tl.where(m_present, _sum_keys(p_total, o_c, m_c, 1), 0x7FFFFFFFFFFFFFFF), mask=m_c)
    tl.debug_barrier()
    wanted = tl.minimum(budget - 1, num_present)
    threshold, ties = _kth(p_keys, num_clusters, wanted, 8, BLOCK)
    ties_before = tl.full((), 0, tl.int32)
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < num_clusters
        m_own, ties_before = _chosen(
            tl.load(p_keys + o_c, mask=m_c, other=0), m_c, threshold, ties, ties_before, wanted
        )
        tl.store(p_shared + o_c, tl.where(m_own, 0, whole), mask=m_c)
    tl.debug_barrier()


@triton.jit
def _elites(p_cluster, p_rank, p_count, o_i, m_i, num_clusters, keep_all):
    """(cluster, whether there is one, elite by rank) of a block of tokens."""
    b_cluster = tl.load(p_cluster + o_i, mask=m_i, other=0)
    m_in = m_i & (b_cluster < num_clusters)
    b_count = tl.load(p_count + b_cluster, mask=m_in, other=0)
    b_rank = tl.load(p_rank + o_i, mask=m_i, other=0)
    return b_cluster, m_in, m_in & ((b_rank < b_count) | (m_in & (keep_all > 0)))


@triton.jit
def plan_kernel(
    p_scores,
    p_cluster,
    p_rank,
    p_place,
    p_size,
    p_total,
    p_scratch,
    p_keys,
    p_perm,
    p_offsets,
    p_anchors,
    p_merged,
    num_tokens,
    num_clusters,
    num_segments,
    stride_sb,
    stride_sn,
    QUOTA: tl.constexpr,
    FILL: tl.constexpr,
    WHOLE: tl.constexpr,
    TOTALS: tl.constexpr,
    ROUND_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    p_scores += i_b * stride_sb
    p_cluster, p_rank, p_place = p_cluster + i_b * num_tokens, p_rank + i_b * num_tokens, p_place + i_b * num_tokens
    p_size, p_total = p_size + i_b * num_clusters, p_total + i_b * num_clusters
    p_keys += i_b * tl.maximum(num_tokens, num_clusters)
    p_perm, p_offsets = p_perm + i_b * num_tokens, p_offsets + i_b * (num_segments + 1)
    p_anchors, p_merged = p_anchors + i_b * num_segments, p_merged + i_b * num_segments
    p_count = p_scratch + i_b * (4 * num_clusters + 3 * num_tokens + 2)
    p_shared = p_count + num_clusters
    p_start = p_shared + num_clusters
    p_base = p_start + num_clusters  # [K + 1]
    p_elite = p_base + num_clusters + 1
    p_rest = p_elite + num_tokens
    p_before = p_rest + num_tokens  # [N + 1]

    num_clustered = tl.full((), 0, tl.int32)
    num_present = tl.full((), 0, tl.int32)
    for c in range(0, num_clusters, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        b_size = tl.load(p_size + o_c, mask=o_c < num_clusters, other=0)
        tl.store(p_start + o_c, num_clustered + tl.cumsum(b_size, 0) - b_size, mask=o_c < num_clusters)
        num_clustered += tl.sum(b_size, 0)
        num_present += tl.sum((b_size > 0).to(tl.int32), 0)
    keep_all = (num_clustered <= num_segments).to(tl.int32)
    whole = (num_present > num_segments).to(tl.int32) * (1 - keep_all)
    elite_budget = tl.where(keep_all + whole > 0, 0, num_segments - num_present)

    missing = tl.full((), 0, tl.int32)
    if QUOTA == RELEASED:
        _released_quotas(
            p_size, p_total, p_count, p_keys, num_clusters, elite_budget, num_clustered, num_present, BLOCK
        )
    else:
        missing = _floor_quotas(
            p_size, p_count, p_keys, num_clusters, elite_budget, num_clustered, QUOTA == EXACT, ROUND_BITS, BLOCK
        )
    if WHOLE:
        _share_clusters(p_size, p_total, p_shared, p_keys, num_clusters, num_present, whole, num_segments, BLOCK)

    threshold = tl.full((), 0, tl.int64)
    ties = tl.full((), 0, tl.int32)
    wanted = tl.full((), 0, tl.int32)
    if FILL:  # the best tokens that are neither elite nor the last of their cluster
        for i in range(0, num_tokens, BLOCK):
            o_i = i + tl.arange(0, BLOCK)
            m_i = o_i < num_tokens
            b_cluster, m_in, m_elite = _elites(p_cluster, p_rank, p_count, o_i, m_i, num_clusters, keep_all)
            b_last = tl.load(p_size + b_cluster, mask=m_in, other=0) - 1
            m_able = m_in & ~m_elite & (tl.load(p_rank + o_i, mask=m_i, other=0) < b_last)
            b_key = order_key(tl.load(p_scores + o_i.to(tl.int64) * stride_sn, mask=m_i, other=0.0), False)
            tl.store(p_keys + o_i, tl.where(m_able, b_key, 0x100000000), mask=m_i)
            wanted += tl.sum(m_able.to(tl.int32), 0)
        tl.debug_barrier()
        wanted = tl.minimum(missing, wanted)
        threshold, ties = _kth(p_keys, num_tokens, wanted, 5, BLOCK)

    # Which tokens are merged, in cluster order; how many of the shared segment.
    num_shared = tl.full((), 0, tl.int32)
    ties_before = tl.full((), 0, tl.int32)
    for i in range(0, num_tokens, BLOCK):
        o_i = i + tl.arange(0, BLOCK)
        m_i = o_i < num_tokens
        b_cluster, m_in, m_elite = _elites(p_cluster, p_rank, p_count, o_i, m_i, num_clusters, keep_all)
        if FILL:
            b_key = tl.load(p_keys + o_i, mask=m_i, other=0)
            m_fill, ties_before = _chosen(b_key, m_i, threshold, ties, ties_before, wanted)
            m_elite = m_elite | m_fill
        if WHOLE:
            num_shared += tl.sum(tl.load(p_shared + b_cluster, mask=m_in, other=0), 0)
        tl.store(p_elite + o_i, m_elite.to(tl.int32), mask=m_i)
        tl.store(p_rest + tl.load(p_place + o_i, mask=m_i, other=0), (m_in & ~m_elite).to(tl.int32), mask=m_i)
    tl.debug_barrier()
    rest_before = tl.full((), 0, tl.int32)
    for i in range(0, num_tokens, BLOCK):
        o_i = i + tl.arange(0, BLOCK)
        b_rest = tl.load(p_rest + o_i, mask=o_i < num_tokens, other=0)
        tl.store(p_before + o_i, rest_before + tl.cumsum(b_rest, 0) - b_rest, mask=o_i < num_tokens)
        rest_before += tl.sum(b_rest, 0)
    tl.store(p_before + num_tokens, rest_before)
    tl.debug_barrier()

    # Segments in the order of their anchors.
    shared_before = tl.full((), 0, tl.int32)
    segments = tl.full((), 0, tl.int32)
    placed = tl.full((), 0, tl.int32)
    for i in range(0, num_tokens, BLOCK):
        o_i = i + tl.arange(0, BLOCK)
        m_i = o_i < num_tokens
        b_cluster = tl.load(p_cluster + o_i, mask=m_i, other=0)
        m_in = m_i & (b_cluster < num_clusters)
        m_elite = tl.load(p_elite + o_i, mask=m_i, other=0) > 0
        b_place = tl.load(p_place + o_i, mask=m_i, other=0)
        b_start = tl.load(p_start + b_cluster, mask=m_in, other=0)
        b_size = tl.load(p_size + b_cluster, mask=m_in, other=0)
        b_first = tl.load(p_before + b_start, mask=m_in, other=0)
        b_rank = tl.load(p_before + b_place, mask=m_in, other=0) - b_first
        b_length = tl.load(p_before + b_start + b_size, mask=m_in, other=0) - b_first
        b_group = b_cluster
        if WHOLE:
            b_shared = tl.load(p_shared + b_cluster, mask=m_in, other=0)
            b_rank = tl.where(b_shared > 0, shared_before + tl.cumsum(b_shared, 0) - 1, b_rank)
            b_length = tl.where(b_shared > 0, num_shared, b_length)
            b_group = tl.where(b_shared > 0, num_clusters, b_group)
            shared_before += tl.sum(b_shared, 0)
        m_middle = m_in & ~m_elite & (b_rank == b_length // 2)
        b_anchor = (m_elite | m_middle).to(tl.int32)
        b_length = tl.where(m_elite, 1, tl.where(m_middle, b_length, 0))
        b_segment = segments + tl.cumsum(b_anchor, 0) - 1
        b_offset = placed + tl.cumsum(b_length, 0) - b_length
        m_anchor = (b_anchor > 0) & (b_segment < num_segments)
        tl.store(p_offsets + b_segment, b_offset.to(tl.int64), mask=m_anchor)
        tl.store(p_anchors + b_segment, o_i.to(tl.int64), mask=m_anchor)
        tl.store(p_merged + b_segment, m_middle.to(tl.uint8), mask=m_anchor)
        tl.store(p_perm + b_offset, o_i.to(tl.int64), mask=m_elite)
        tl.store(p_base + b_group, b_offset, mask=m_middle)
        tl.store(p_rest + o_i, b_rank, mask=m_i)
        segments += tl.sum(b_anchor, 0)
        placed += tl.sum(b_length, 0)
    tl.debug_barrier()

    # Members of the merged segments; tokens of none after them.
    for i in range(0, num_tokens, BLOCK):
        o_i = i + tl.arange(0, BLOCK)
        m_i = o_i < num_tokens
        b_group = tl.load(p_cluster + o_i, mask=m_i, other=0)
        m_in = m_i & (b_group < num_clusters)
        m_rest = m_in & (tl.load(p_elite + o_i, mask=m_i, other=0) == 0)
        if WHOLE:
            b_group = tl.where(tl.load(p_shared + b_group, mask=m_in, other=0) > 0, num_clusters, b_group)
        b_target = tl.load(p_base + b_group, mask=m_rest, other=0) + tl.load(p_rest + o_i, mask=m_rest, other=0)
        b_out = (m_i & (b_group > num_clusters - 1) & ~m_in).to(tl.int32)
        b_target = tl.where(m_rest, b_target, placed + tl.cumsum(b_out, 0) - 1)
        tl.store(p_perm + b_target, o_i.to(tl.int64), mask=m_rest | (b_out > 0))
        placed += tl.sum(b_out, 0)
    for s in range(0, num_segments + 1, BLOCK):
        o_s = s + tl.arange(0, BLOCK)
        m_empty = (o_s >= segments) & (o_s < num_segments)
        tl.store(p_offsets + o_s, (o_s * 0 + num_clustered).to(tl.int64), mask=m_empty | (o_s == num_segments))
        tl.store(p_anchors + o_s, (o_s * 0 - 1).to(tl.int64), mask=m_empty)
        tl.store(p_merged + o_s, (o_s * 0).to(tl.uint8), mask=m_empty)
