"""One generator per op: a case is a valid call, and a function of (op, seed) alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draw import Draw
from .values import BROKEN, PLAIN, RANGE, STRUCTURES, rows, scores

INF = float("inf")
TRITON_EVERY = 32  # one seed in so many makes a small case, which the Triton kernels get too


@dataclass
class Case:
    op: str
    seed: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtype: torch.dtype
    structure: str
    tokens: int
    small: bool
    marks: tuple[str, ...] = ()


def case_of(op: str, seed: int) -> Case:
    small = seed % TRITON_EVERY == 0
    return drawn(op, Draw(op, seed, small), seed)


def drawn(op: str, draw: Draw, seed: int = -1) -> Case:
    dtype, structure, tokens, args, kwargs = GENERATORS[op](draw)
    marks = draw.marks | {name for name, so in (("one token", tokens == 1), ("over 2048 tokens", tokens > 2048)) if so}
    return Case(op, seed, args, kwargs, dtype, structure, tokens, draw.small, tuple(sorted(marks)))


Made = tuple[torch.dtype, str, int, tuple[Any, ...], dict[str, Any]]


def select_tokens(draw: Draw) -> Made:
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens()
    values = scores(draw, (*draw.batch(), n), dtype, structure)
    k = draw.edge(0, n)
    return dtype, structure, n, (draw.laid_out(values, True), k), dict(largest=draw.chance(2))


def key_norms(draw: Draw) -> Made:
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens()
    heads, width = draw.size(16), draw.size(max(1, min(200, 2**15 // n)))
    heads = max(1, min(heads, 2**17 // (n * width)))
    keys = rows(draw, (*draw.batch(n * width * heads), heads, n, width), dtype, structure)
    return dtype, structure, n, (draw.laid_out(keys, True),), dict(heads=draw.pick(["l2", "mean"]))


def _projection(draw: Draw) -> tuple[torch.dtype, str, int, list[Tensor | None], dict[str, Any]]:
    """Weights and biases are of ordinary size: hidden states below 2^100 keep every key in float32's range."""
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens()
    width = draw.size(max(1, min(300, 2**15 // n)))
    heads = draw.pick([1, 1, 2, 3, 4, 8])
    out = heads * draw.size(max(1, min(64, 2**20 // (n * width * heads))))
    hidden = rows(draw, (*draw.batch(n * width), n, width), dtype, structure, top=8 if dtype == torch.float16 else 100)
    whole = structure == "whole numbers"
    weight = draw.integers(-2, 2, (out, width)) if whole else draw.normal(out, width) / width**0.5
    bias = draw.integers(-3, 3, (out,)) if whole else draw.normal(out)
    weight, bias = (torch.from_numpy(np.asarray(v, np.float64)).to(dtype) for v in (weight, bias))
    given: list[Tensor | None] = [draw.laid_out(hidden, True), draw.laid_out(weight)]
    given.append(draw.laid_out(bias) if draw.chance(2) else None)
    return dtype, structure, n, given, dict(num_heads=heads, heads=draw.pick(["l2", "mean"]))


def key_proj(draw: Draw) -> Made:
    dtype, structure, n, given, options = _projection(draw)
    return dtype, structure, n, tuple(given), options


def key_proj_norms(draw: Draw) -> Made:
    dtype, structure, n, given, options = _projection(draw)
    rms = None
    if draw.chance(2):
        width = given[0].shape[-1]  # type: ignore[union-attr]
        rms = draw.laid_out(torch.from_numpy(draw.rng.random(width) + 0.5).to(dtype))
        options["rms_eps"] = draw.pick([1e-6, 1e-5, 0.1])
    return dtype, structure, n, (*given, rms), options


def attention_saliency(draw: Draw) -> Made:
    """Scores stay in float32's range: queries are ordinary where keys are huge."""
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens()
    width = draw.size(max(1, min(256, 2**16 // n)))
    shared = draw.pick([1, 1, 2, 4])
    heads = shared * draw.pick([1, 1, 2, 3])
    queries = draw.size(max(1, min(9, 2**18 // (n * width * heads))))
    batch = draw.batch(n * width * heads)
    key = rows(draw, (*batch, shared, n, width), dtype, structure, top=110)
    like = structure if structure in PLAIN or (structure in BROKEN and draw.chance(3)) else "gaussian"
    query = rows(draw, (*batch, heads, queries, width), dtype, like) * draw.pick([1, 2, 8])
    mask = None
    if draw.chance(2):
        mask = torch.from_numpy(draw.rng.random((*batch, queries, n)) < draw.pick([0.0, 0.1, 0.7, 1.0]))
        mask = draw.laid_out(mask)
    scale = draw.pick([None, None, None, 0.3, -1.5, 0.0])
    return dtype, structure, n, (draw.laid_out(query), draw.laid_out(key, True), mask), dict(scale=scale)


# --- plans ------------------------------------------------------------------------------------------------------------


def _labels(draw: Draw, shape: tuple[int, ...]) -> tuple[Tensor, int, str]:
    n = shape[-1]
    most = min(n + 3, draw.pick([1, 2, 5, 1 + n // 12, 1 + n // 6, 1 + n // 3, 1 + n // 2, n + 3]))
    kind = draw.pick(["uneven"] * 5 + ["some outside"] * 2 + ["even", "one cluster", "each its own", "none inside"])
    if kind == "uneven":
        labels = np.minimum(draw.rng.geometric(min(1.0, 3 / most), shape) - 1, most - 1)
    elif kind == "even":
        labels = np.broadcast_to(np.arange(n) % most, shape)
    elif kind == "one cluster":
        labels = np.full(shape, draw.integer(0, most - 1))
    elif kind == "each its own":
        labels = np.broadcast_to(draw.rng.permutation(n) % most, shape)
    elif kind == "some outside":
        labels = draw.integers(-2, most + 1, shape)
    else:
        labels = np.where(draw.integers(0, 1, shape) == 1, -1, most + 7)
    t = torch.from_numpy(np.array(labels, np.int64))
    return t.to(draw.pick([torch.int64, torch.int32])), most, kind


def plan_tokens(draw: Draw) -> Made:
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens(square=True)
    shape = (*draw.batch(n), n)
    labels, most, kind = _labels(draw, shape)
    values = scores(draw, shape, dtype, structure)
    present = len({int(x) for x in labels.unique().tolist() if 0 <= x < most})
    between = draw.integer(max(1, present), max(1, present, n))  # clusters keep some elites and merge the rest
    budget = draw.pick([between, between, between, draw.edge(1, n + 2), max(1, present - 1), present + 1])
    options = dict(quota=draw.pick(["exact", "exact", "floor", "released"]), fill=draw.chance(2))
    args = (draw.laid_out(labels, True), draw.laid_out(values, True), most, budget)
    return dtype, f"{structure}; {kind}", n, args, options


def _segments(draw: Draw, batch: tuple[int, ...], n: int) -> list[Tensor]:
    """perm, offsets, anchors, merged: a random partition with empty segments and tokens of none."""
    size = draw.edge(0, n)
    count = batch[0] if batch else 1
    perm = np.stack([draw.rng.permutation(n) for _ in range(count)] or [np.zeros(n, int)])[:count].reshape(count, n)
    used = draw.integers(n - draw.edge(0, n // 3), n, (count, 1))
    cuts = np.sort(draw.integers(0, n, (count, size + 1)), axis=-1)
    cuts = np.minimum(cuts, used) if draw.chance(2) else np.minimum(np.arange(size + 1), n) + 0 * cuts
    length = np.diff(cuts)
    anchors = np.take_along_axis(perm, np.minimum(cuts[:, :-1] + length // 2, n - 1), -1)
    some = draw.integers(0, 3, length.shape) == 0
    anchors = np.where((length == 0) & ~some, -1, anchors)
    merged = (length > 1) | some
    parts = [torch.from_numpy(np.ascontiguousarray(v)) for v in (perm, cuts, anchors, merged)]
    return [draw.laid_out(p if batch else p[0]) for p in parts]


def _merging(draw: Draw, backward: bool) -> tuple[torch.dtype, str, int, list[Tensor], dict[str, Any]]:
    dtype, structure, n = draw.dtype(), draw.pick(STRUCTURES), draw.tokens()
    width = draw.size(max(1, min(600, 2**15 // n)))
    batch = draw.batch(n * width)
    plan = _segments(draw, batch, n)
    count = plan[1].shape[-1] - 1 if backward else n
    x = draw.laid_out(rows(draw, (*batch, count, width), dtype, structure), True)
    return dtype, structure, n, [x, *plan], dict(merge=draw.pick(["mean", "anchor_plus_mean"]))


def segment_mean(draw: Draw) -> Made:
    dtype, structure, n, given, options = _merging(draw, backward=False)
    return dtype, structure, n, tuple(given), options


def segment_mean_backward(draw: Draw) -> Made:
    dtype, structure, n, given, options = _merging(draw, backward=True)
    return dtype, structure, n, tuple(given), options


def compact_sequence(draw: Draw) -> Made:
    dtype, structure, n, (x, *plan), options = _merging(draw, backward=False)
    batch = tuple(x.shape[:-2])
    companions = []
    for _ in range(draw.pick([0, 1, 2, 4, 5])):
        lead = draw.pick([batch, (1,)]) if batch not in ((), (0,)) else batch
        tail = draw.pick([(), (1,), (3,), (2, 3), (0,)])
        kind = draw.pick([dtype, torch.float32, torch.int64, torch.int32, torch.bool])
        values = scores(draw, (*lead, n, *tail), torch.float32, draw.pick(["gaussian", "NaN and Inf"]))
        values = values if kind.is_floating_point else values.nan_to_num(0, 0, 0) * 9
        companions.append(draw.laid_out(values.to(kind)))
    return dtype, structure, n, (x, companions, *plan), options


def expand_plan(draw: Draw) -> Made:
    """Samples with their own number of visual tokens and segments; shapes as long as the longest."""
    n = draw.tokens()
    kind = draw.pick(["merging", "merging", "dropping"])
    batch = draw.batch(n)
    samples = [_sequence(draw, n, kind == "merging") for _ in range(batch[0] if batch else 1)]
    if len({len(s["slots"]) for s in samples}) > 1:
        draw.marks.add("samples of different lengths")
    width = max((len(s["slots"]) for s in samples), default=0) + draw.pick([0, 0, 2])
    size = max((len(s["anchors"]) for s in samples), default=0) + draw.pick([0, 0, 3])
    out_len = draw.edge(max((s["kept"] for s in samples), default=0), n)
    fills = dict(slots=(width, -1), anchors=(size, -1), perm=(width, -1), offsets=(size + 1, 0))
    fills |= dict(merged=(size, False), valid=(n, True))
    if kind == "dropping":
        fills = {name: fills[name] for name in ("slots", "anchors", "valid")}
    if draw.chance(2):
        del fills["valid"]
    given = {}
    for name, (length, fill) in fills.items():
        ends = [s[name][-1] if name == "offsets" else fill for s in samples]
        parts = [
            np.concatenate([s[name], np.full(length - len(s[name]), end, s[name].dtype)])
            for s, end in zip(samples, ends, strict=True)
        ]
        kept = torch.from_numpy(np.stack(parts)) if parts else torch.zeros(0, length).to(
            torch.bool if name in ("merged", "valid") else torch.int64
        )  # fmt: skip
        given[name] = draw.laid_out(kept if batch else kept[0])
    if "valid" not in given and samples:  # what was padding is text now, and needs a column
        out_len = min(n, out_len + max(int((~s["valid"]).sum()) for s in samples))
    names = ("slots", "anchors", "perm", "offsets", "merged", "valid")
    args = tuple(given.get(name) for name in names)
    return torch.int64, kind, n, args, dict(num_slots=n, out_len=out_len)


def _sequence(draw: Draw, n: int, merging: bool) -> dict[str, Any]:
    valid = np.ones(n, bool)
    valid[: draw.edge(0, n // 3)] = False
    free = np.flatnonzero(valid)
    visual = draw.edge(0, len(free))
    slots = draw.rng.permutation(free)[:visual]
    slots = np.sort(slots) if draw.chance(2) else slots
    size = draw.edge(0, visual)
    if not merging:
        anchors = np.sort(draw.rng.permutation(visual)[:size])
        return dict(slots=slots, anchors=anchors, valid=valid, kept=int(valid.sum()) - visual + size)
    perm = draw.rng.permutation(visual)
    cuts = np.sort(draw.integers(0, visual, (size + 1,)))
    length = np.diff(cuts)
    if visual:
        anchors = np.where(length > 0, perm[np.minimum(cuts[:-1] + length // 2, visual - 1)], -1)
    else:
        anchors = np.full(size, -1)
    kept = int(valid.sum()) - visual + int((length > 0).sum())
    return dict(slots=slots, anchors=anchors, perm=perm, offsets=cuts, merged=length > 1, valid=valid, kept=kept)


# --- clusters ---------------------------------------------------------------------------------------------------------


def _clustering(draw: Draw) -> dict[str, Any]:
    return dict(
        semantics=draw.pick(["paper", "paper", "released"]),
        metric=draw.pick(["l2", "l2", "l2", "cosine"]),
        dist_scale=draw.pick([1.0, 1.0, 1.0, 0.25, 3.0]),
        density=draw.pick(["gaussian", "gaussian", "knn"]),
        knn=draw.pick([1, 3, 5, 500]),
        include_self=draw.pick([None, None, True, False]),
        assign=draw.pick(["parent", "parent", "nearest"]),
        root_delta=draw.pick(["inf", "inf", "max"]),
    )


def _features(draw: Draw, lead: tuple[int, ...], n: int) -> tuple[torch.dtype, str, Tensor, float]:
    """Tokens, and a cutoff near their distances or far from them."""
    dtype = draw.dtype()
    structure = draw.pick([*PLAIN * 2, *RANGE, *BROKEN])
    width = draw.size(max(1, min(300, 2**26 // n**2)))
    x = rows(draw, (*lead, n, width), dtype, structure)
    if dtype == torch.float16 and structure != "huge" and draw.chance(2):
        x = x * 0.25
    finite = x.double().nan_to_num(0, 0, 0)
    typical = float(finite.std()) * width**0.5 if finite.numel() > 1 else 1.0
    cutoff = min(1e30, max(1e-30, typical)) * draw.pick([1.0, 1.0, 0.3, 3.0, 0.02, 100.0])
    return dtype, structure, x, draw.pick([cutoff, cutoff, cutoff, 8.0])


def _positions(draw: Draw, lead: tuple[int, ...], n: int) -> tuple[Tensor | None, float]:
    kind = draw.pick(["none", "raster", "raster", "random", "coarse"])
    tau = draw.pick([INF, 0.6, 0.5, 0.25, 0.1, 0.0])
    if kind == "none":
        return None, tau
    side = int(np.ceil(n**0.5))
    if kind == "raster":
        places = np.stack([np.arange(n) // side, np.arange(n) % side], -1) / side
    elif kind == "random":
        places = draw.rng.random((*lead, n, draw.pick([1, 2, 3])))
    else:
        places = draw.integers(0, 4, (*lead, n, 2)) / 4
    t = torch.from_numpy(places).to(draw.pick([torch.float32, torch.float32, torch.float64, torch.bfloat16]))
    return draw.laid_out(t), tau


def vic_cluster(draw: Draw) -> Made:
    n = draw.tokens(square=True)
    batch = (draw.batch(n**2) or ()) if n <= 512 else draw.pick([(), (1,)])
    dtype, structure, x, cutoff = _features(draw, batch, n)
    places, tau = _positions(draw, batch, n)
    valid = counts = None
    if draw.chance(4):
        draw.marks.add("padding")
        valid = draw.laid_out(torch.from_numpy(draw.rng.random((*batch, n)) < draw.pick([0.0, 0.5, 0.9])))
    if draw.chance(4):
        counts = torch.from_numpy(draw.integers(-1, n + 2, batch)).to(draw.pick([torch.int64, torch.int32]))
    args = (draw.laid_out(x, True), places, cutoff, tau, draw.edge(1, n), valid, counts)
    return dtype, structure, n, args, _clustering(draw)


def vic_cluster_varlen(draw: Draw) -> Made:
    """Ragged samples, some of them empty."""
    lengths = [draw.pick([0, 1, draw.tokens(square=True)]) for _ in range(draw.integer(1, 5))]
    if sum(lengths) == 0:
        lengths[-1] = 1
    total, longest = sum(lengths), max(lengths)
    draw.marks |= {"samples of different lengths"} if len(set(lengths)) > 1 else set()
    draw.marks |= {"empty samples among others"} if 0 in lengths else set()
    dtype, structure, x, cutoff = _features(draw, (), total)
    places, tau = _positions(draw, (), total)
    cu = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=draw.pick([torch.int32, torch.int64]))
    counts = None
    if draw.chance(3):
        counts = torch.from_numpy(draw.integers(-1, longest + 2, (len(lengths),)))
    bound = longest + draw.pick([0, 0, 5])
    args = (draw.laid_out(x), places, cu, bound, cutoff, tau, draw.edge(1, bound), counts)
    return dtype, structure, total, args, _clustering(draw)


GENERATORS: dict[str, Callable[[Draw], Made]] = {
    f.__name__: f
    for f in (
        attention_saliency, compact_sequence, expand_plan, key_norms, key_proj, key_proj_norms, plan_tokens,
        segment_mean, segment_mean_backward, select_tokens, vic_cluster, vic_cluster_varlen,
    )
}  # fmt: skip
OPS = tuple(GENERATORS)
