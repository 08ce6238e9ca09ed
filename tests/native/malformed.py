"""Bytes -> a call of an op, good or malformed: the fuzzer's view of the op boundary.

A call is built as a user would build it, small and well formed, from the first bytes; later bytes spoil it: a dtype, a
rank, a size (up to 2^63 - 1, over strides of zero or beside an empty dimension, so that no memory is needed), a stride,
an index, a number, a word. Any bytes make a call, and the same bytes make the same call everywhere.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2)
# Vectors of 4 to 16 lanes, their tails, and the blocks of 32, 64, 96, 512 and 1024 that the kernels work in.
TOKENS = (5, 1, 2, 3, 9, 16, 17, 33, 0, 40, 97, 130)
WIDTHS = (4, 1, 3, 8, 15, 16, 17, 33, 0, 64, 65, 130, 513, 1030)
HUGE_SIZES = (2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1)
# As numbers of things to allocate these must fail, so nothing between what fits and what no address space holds.
INTS = (-1, 0, 1, 7, -(2**31), -(2**63), 2**44, 2**62, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-45, 1e-320, 1e300, 1.0)


@dataclass
class Call:
    op: str
    given: dict[str, Any]  # by the names of the schema

    def bound(self, change: Callable[[Tensor], Tensor] = lambda t: t) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, every tensor passed through `change`."""

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            return [change(t) for t in value] if isinstance(value, list) else value

        schema = getattr(torch.ops.vitcop, self.op).default._schema.arguments
        known = [a for a in schema if a.name in self.given]
        args = [convert(self.given[a.name]) for a in known if not a.kwarg_only]
        return args, {a.name: convert(self.given[a.name]) for a in known if a.kwarg_only}

    def tensors(self) -> list[Tensor]:
        values = [v for value in self.given.values() for v in (value if isinstance(value, list) else [value])]
        return [v for v in values if isinstance(v, Tensor)]

    def __str__(self) -> str:
        def show(value: Any) -> str:
            if isinstance(value, list):
                return "[" + ", ".join(map(show, value)) + "]"
            if not isinstance(value, Tensor):
                return repr(value)
            text = f"{value.dtype} {tuple(value.shape)} by {value.stride()}".removeprefix("torch.")
            small = value.device.type == "cpu" and 0 < value.numel() <= 64 and not value.is_floating_point()
            return text + (f" {value.tolist()}" if small else "")

        return f"{self.op}(" + ", ".join(f"{name}={show(value)}" for name, value in self.given.items()) + ")"


class Bytes:
    """Choices read from bytes; zeros when they have run out."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def pick(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def below(self, n: int) -> int:
        return self.byte() % max(n, 1)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.byte())

    # --- tensors

    def floats(self, *shape: int, dtype: torch.dtype) -> Tensor:
        random = self.generator()
        x = torch.randn(shape, generator=random)
        kind = self.byte() % 8
        if kind == 1:  # ties and duplicates
            x = torch.randint(-1, 2, shape, generator=random).float()
        elif kind == 2:
            x = x * 1e30 if self.byte() % 2 else x * 1e-30
        elif kind == 3:
            x = x + 200
        elif kind in (4, 5) and x.numel():
            values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, 1e-42, -0.0, 65504.0, 0.0])
            where = torch.randint(0, x.numel(), (1 if kind == 4 else x.numel(),), generator=random)
            x.view(-1)[where] = values[torch.randint(0, len(values), where.shape, generator=random)]
        return self.laid_out(x.to(dtype))

    def ints(self, *shape: int, high: int, dtype: torch.dtype = torch.int64, low: int = 0) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator(), dtype=dtype)

    def bools(self, *shape: int) -> Tensor:
        return self.laid_out(torch.rand(shape, generator=self.generator()) < 0.7)

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values, or fewer of them, at other strides and offsets."""
        kind = self.byte() % 12
        if kind == 1 and x.dim() >= 2:
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind == 2 and x.dim() >= 2:
            return x.movedim(0, -1).contiguous().movedim(-1, 0)
        if kind == 3 and x.dim():
            return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
        if kind == 4 and x.dim():
            return torch.cat([x[..., :1], x, x[..., :1]], -1)[..., min(x.shape[-1], 1) :][..., : x.shape[-1]]
        if kind == 5:
            return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)
        if kind == 6 and x.dim() and x.numel():
            dim = self.below(x.dim())
            return x.narrow(dim, 0, 1).expand(x.shape)
        if kind == 7 and x.numel():  # windows that overlap
            strides = [self.below(3) for _ in x.shape]
            if 1 + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) <= x.numel():
                return x.contiguous().as_strided(x.shape, strides)
        if kind == 8 and x.dtype in FLOATS:
            return x._neg_view() if self.byte() % 2 else x.requires_grad_()
        return x

    def spoiled(self, index: Tensor, limit: int) -> Tensor:
        """Some entries out of range, out of order or extreme."""
        flat = index.clone().reshape(-1)
        info = torch.iinfo(index.dtype)
        values = (-1, -2, limit - 1, limit, limit + 1, info.max, info.min, 2**31, 0, self.byte())
        for _ in range(self.pick((0, 0, 0, 1, 1, 2, 5))):
            value = self.pick(values)
            if flat.numel() and info.min <= value <= info.max:
                flat[self.below(flat.numel())] = value
        return self.laid_out(flat.view(index.shape))

    def broken_tensor(self, t: Tensor) -> Tensor | None:
        kind = self.byte() % 10
        if kind == 0:
            return t.to(self.pick(DTYPES))
        if kind == 1:
            return t.unsqueeze(self.below(t.dim() + 1))
        if kind == 2 and t.dim() and t.numel():
            return t.select(self.below(t.dim()), 0)
        if kind == 3 and t.dim():
            dim = self.below(t.dim())
            return t.narrow(dim, 0, t.shape[dim] // 2)
        if kind == 4 and t.dim():
            dim = self.below(t.dim())
            if t.shape[dim] > 2**40:  # twice that is more than an int64
                return t
            return torch.cat([t, t], dim).narrow(dim, 0, min(t.shape[dim] + 1, 2 * t.shape[dim]))
        if kind in (5, 6) and t.dim():  # sizes beyond 2^31 without an element
            shape = list(t.shape)
            shape[self.below(len(shape))] = self.pick(HUGE_SIZES)
            empty = [k for k, size in enumerate(shape) if size not in HUGE_SIZES]
            if empty:
                shape[self.pick(empty)] = 0
                with suppress(RuntimeError):  # the other sizes multiply to more than an int64: torch has no such tensor
                    return t.new_empty(0).as_strided(shape, [1] * len(shape))
        if kind == 7:
            return None
        if kind == 8:
            return t.to("meta")
        return t.new_zeros(self.pick(((), (0,), (1, 1, 1, 1, 1))))

    def broken(self, value: Any) -> Any:
        if isinstance(value, list):
            if not value or self.byte() % 3 == 0:
                return [*value, *value, torch.zeros(3)]
            k = self.below(len(value))
            broken = self.broken_tensor(value[k])
            return [*value[:k], *([] if broken is None else [broken]), *value[k + 1 :]]
        if isinstance(value, Tensor):
            return self.broken_tensor(value)
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.pick((*INTS, value + 1 - 2 * (value > 2**60), value - 1, 2 * value % 2**62))
        if isinstance(value, float):
            return self.pick(NUMBERS)
        if isinstance(value, str):
            return self.pick(("", "released", "mean", "none", "x" * 300))
        return self.laid_out(torch.zeros(self.below(9)).to(self.pick(DTYPES)))  # a tensor instead of None


def _batch(b: Bytes) -> tuple[int, ...]:
    return b.pick(((), (2,), (1,), (3,), (0,)))


def _maybe(b: Bytes, make: Callable[[], T]) -> T | None:
    return make() if b.byte() % 2 else None


def key_norms(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    shape = (*_batch(b), b.pick((1, 2, 3, 8)), b.pick(TOKENS), b.pick(WIDTHS))
    return dict(keys=b.floats(*shape, dtype=dtype), heads=b.pick(("l2", "mean")))


def _projection(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    heads, width, channels = b.pick((1, 2, 3, 12)), b.pick((4, 1, 16, 130, 513)), b.pick(WIDTHS)
    return dict(
        hidden=b.floats(*_batch(b), b.pick(TOKENS), channels, dtype=dtype),
        weight=b.floats(heads * width, channels, dtype=dtype),
        bias=_maybe(b, lambda: b.floats(heads * width, dtype=dtype)),
        num_heads=heads,
        heads=b.pick(("l2", "mean")),
    )


key_proj = _projection


def key_proj_norms(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    given = _projection(b, dtype)
    channels = given["hidden"].shape[-1]
    given["rms_weight"] = _maybe(b, lambda: b.floats(channels, dtype=dtype))
    return given | dict(rms_eps=b.pick((1e-6, 0.0, 1.0)))


def attention_saliency(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, groups, heads = _batch(b), b.pick((1, 2, 3)), b.pick((1, 2, 8))
    rows, tokens, width = b.pick((1, 2, 5, 33, 0)), b.pick(TOKENS), b.pick(WIDTHS)
    return dict(
        query=b.floats(*batch, heads * groups, rows, width, dtype=dtype),
        key=b.floats(*batch, heads, tokens, width, dtype=dtype),
        mask=_maybe(b, lambda: b.bools(*batch, rows, tokens)),
        scale=b.pick((None, 0.1, 0.0, -2.0)),
    )


def select_tokens(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    tokens = b.pick(TOKENS)
    return dict(scores=b.floats(*_batch(b), tokens, dtype=dtype), k=b.below(tokens + 1), largest=b.pick((False, True)))


def plan_tokens(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    shape, clusters = (*_batch(b), b.pick(TOKENS)), b.pick((3, 1, 8, 40))
    labels = b.ints(*shape, high=clusters, dtype=b.pick((torch.int64, torch.int32)))
    return dict(
        labels=b.spoiled(labels, clusters),
        scores=b.floats(*shape, dtype=dtype),
        num_clusters=clusters,
        budget=1 + b.below(shape[-1] + 2),
        quota=b.pick(("exact", "floor", "released")),
        fill=b.pick((True, False)),
    )


def _segments(b: Bytes, batch: tuple[int, ...], tokens: int) -> dict[str, Any]:
    count = b.pick((2, 0, 1, 5, 17))
    perm = torch.rand((*batch, tokens), generator=b.generator()).argsort(-1)
    offsets = b.ints(*batch, count + 1, high=tokens + 1).sort(-1).values
    return dict(
        perm=b.spoiled(perm, tokens),
        offsets=b.spoiled(offsets, tokens),
        anchors=b.spoiled(b.ints(*batch, count, high=tokens, low=b.pick((0, -1))), tokens),
        merged=b.bools(*batch, count),
        merge=b.pick(("mean", "anchor_plus_mean")),
    )


def segment_mean(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, tokens = _batch(b), b.pick(TOKENS)
    given = dict(x=b.floats(*batch, tokens, b.pick(WIDTHS), dtype=dtype), **_segments(b, batch, tokens))
    if b.byte() % 2:
        given |= dict(anchors=None, merged=None, merge="mean")
    return given


def segment_mean_backward(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, tokens = _batch(b), b.pick(TOKENS)
    plan = _segments(b, batch, tokens)
    return dict(grad=b.floats(*batch, plan["offsets"].shape[-1] - 1, b.pick(WIDTHS), dtype=dtype), **plan)


def compact_sequence(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    given = segment_mean(b, dtype)
    batch, tokens = tuple(given["x"].shape[:-2]), given["x"].shape[-2]
    companions = []
    for _ in range(b.below(4)):
        lead = b.pick((batch, (1,) * len(batch)))
        tail = b.pick(((), (3,), (2, 2), (0,)))
        kind = b.pick(DTYPES)
        companions.append(b.laid_out(b.ints(*lead, tokens, *tail, high=100).to(kind)))
    if given["anchors"] is None:
        count = given["offsets"].shape[-1] - 1
        given["anchors"] = b.spoiled(b.ints(*batch, count, high=tokens), tokens)
    return given | dict(companions=companions)


def expand_plan(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    del dtype  # indices only
    batch, tokens, segments, extra = _batch(b), b.pick(TOKENS), b.pick((2, 0, 1, 5)), b.below(6)
    slots = torch.rand((*batch, tokens + extra), generator=b.generator()).argsort(-1)[..., :tokens]
    num_slots = tokens + extra
    perm = torch.rand((*batch, tokens), generator=b.generator()).argsort(-1)
    offsets = b.ints(*batch, segments + 1, high=tokens + 1).sort(-1).values
    if tokens:
        anchors = perm.gather(-1, offsets[..., :-1].clamp(max=tokens - 1))
        anchors = anchors.masked_fill(offsets.diff() == 0, -1)
    else:
        anchors = offsets[..., :-1] - 1
    given: dict[str, Any] = dict(slots=b.spoiled(slots, num_slots), anchors=b.spoiled(anchors, tokens))
    if b.byte() % 3:
        given |= dict(perm=b.spoiled(perm, tokens), offsets=b.spoiled(offsets, tokens))
    given["merged"] = _maybe(b, lambda: b.bools(*batch, segments))
    given["valid"] = _maybe(b, lambda: b.bools(*batch, num_slots))
    return given | dict(num_slots=num_slots, out_len=min(num_slots, b.pick((num_slots, extra + segments, 0, 3))))


def _clustering(b: Bytes) -> dict[str, Any]:
    return dict(
        d_c=b.pick((8.0, 0.5, 1e-30, 1e30)), tau=b.pick((0.6, float("inf"), 0.0)),
        semantics=b.pick(("paper", "released")), metric=b.pick(("l2", "cosine")), dist_scale=b.pick((1.0, 0.1, 1e30)),
        density=b.pick(("gaussian", "knn")), knn=b.pick((5, 1, 1000, 2**63 - 1)),
        include_self=b.pick((None, True, False)), assign=b.pick(("parent", "nearest")),
        root_delta=b.pick(("inf", "max")),
    )  # fmt: skip


def vic_cluster(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    batch, tokens = _batch(b), b.pick(TOKENS)
    features = b.floats(*batch, tokens, b.pick(WIDTHS), dtype=dtype)
    lead = b.pick((batch, ()))
    return dict(
        features=features,
        positions=_maybe(b, lambda: b.floats(*lead, tokens, b.pick((2, 1, 0, 3)), dtype=b.pick(FLOATS))),
        num_centers=1 + b.below(tokens),
        valid=_maybe(b, lambda: b.bools(*batch, tokens)),
        center_counts=_maybe(b, lambda: b.spoiled(b.ints(*batch, high=tokens), tokens)),
        **_clustering(b),
    )


def vic_cluster_varlen(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    tokens, batch = b.pick(TOKENS), b.pick((2, 1, 5))
    inner = b.ints(batch - 1, high=tokens + 1).sort().values
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), inner, torch.tensor([tokens])])
    longest = max(1, int(cu.diff().max()))
    return dict(
        features=b.floats(tokens, b.pick(WIDTHS), dtype=dtype),
        positions=_maybe(b, lambda: b.floats(tokens, b.pick((2, 1, 0, 3)), dtype=b.pick(FLOATS))),
        cu_seqlens=b.spoiled(cu.to(b.pick((torch.int32, torch.int64))), tokens),
        max_seqlen=b.pick((longest, tokens, 1, 2**44, 2**63 - 1)),
        num_centers=1 + b.below(longest),
        center_counts=_maybe(b, lambda: b.spoiled(b.ints(batch, high=tokens), tokens)),
        **_clustering(b),
    )


BUILDERS: dict[str, Callable[[Bytes, torch.dtype], dict[str, Any]]] = {
    f.__name__ if f is not _projection else "key_proj": f
    for f in (
        attention_saliency, compact_sequence, expand_plan, key_norms, key_proj, key_proj_norms, plan_tokens,
        segment_mean, segment_mean_backward, select_tokens, vic_cluster, vic_cluster_varlen,
    )
}  # fmt: skip


def call_from(data: bytes) -> Call:
    b = Bytes(data)
    op = b.pick(tuple(BUILDERS))
    damages = b.pick((0, 0, 1, 1, 2))
    given = BUILDERS[op](b, b.pick((*FLOATS[:3], *FLOATS[:3], torch.float32, torch.float64)))
    for _ in range(damages):
        name = b.pick(tuple(given))
        value, kind = b.broken(given[name]), type_of(op, name)
        # The dispatcher itself refuses what does not fit the schema.
        if (value is None and kind == "Tensor") or (isinstance(value, Tensor) and "Tensor" not in kind):
            continue
        given[name] = value
    return Call(op, given)


def type_of(op: str, name: str) -> str:
    schema = getattr(torch.ops.vitcop, op).default._schema
    return next(str(a.type) for a in schema.arguments if a.name == name)
