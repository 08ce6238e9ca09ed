"""Choosing the k smallest without sorting: keys as integers, and their k-th smallest found byte by byte."""

import triton
import triton.language as tl

from vitcop_kernels._triton import widen

LAST = tl.constexpr(0xFFFFFFFF)  # sorts after every score: NaN, and what may not be chosen


@triton.jit
def order_key(x, LARGEST: tl.constexpr):
    """Scores to int64 in [0, LAST] that sort best first: -0.0 ties with 0.0, NaN comes last in either direction."""
    bits = widen(x).to(tl.int32, bitcast=True)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if LARGEST:
        bits = bits ^ -0x80000000
    bits = tl.where(bits == -0x80000000, 0, bits)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 0x80000000
    return tl.where(nan, 0xFFFFFFFF, ordered)


@triton.jit
def order_key64(x):
    """float64 without NaN to int64 that sorts ascending: -0.0 ties with 0.0."""
    bits = x.to(tl.int64, bitcast=True)
    bits = tl.where(x == 0.0, 0, bits)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@triton.jit
def next_digit(histogram, rank):
    """The digit of the `rank`-th smallest (from 1) and its rank among those that share it."""
    bins = tl.arange(0, 256)
    below = tl.cumsum(histogram, 0) - histogram
    digit = tl.sum((below < rank).to(tl.int32), 0) - 1
    return digit, rank - tl.sum(tl.where(bins == digit, below, 0), 0)
