"""Each op at a shape: dimensions by name, with defaults of LLaVA-1.5-7B, inputs, and the work of its definition."""

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .inputs import tokens

D_C, TAU = 8.0, 0.6
MEANING = {
    "batch": "samples",
    "tokens": "tokens of a sample",
    "width": "channels of a token",
    "clusters": "clusters of a sample",
    "heads": "attention heads",
    "head_dim": "channels of a head",
    "queries": "query rows",
    "keep": "tokens kept",
    "budget": "tokens after merging",
    "text": "tokens of text around the visual ones",
}
Dims = dict[str, int]
Default = int | Callable[[Dims], int]


def _share(name: str, share: float) -> Callable[[Dims], int]:
    return lambda dims: max(1, math.ceil(share * dims[name]))


@dataclass(frozen=True)
class Spec:
    """`dims`: name -> default, one that depends on others after them. `make(dims, random)`: (args, kwargs)."""

    dims: Mapping[str, Default]
    make: Callable[[Dims, "Random"], tuple[tuple[Any, ...], dict[str, Any]]]
    flops: Callable[[Dims], float]


@dataclass
class Case:
    """An op with inputs on a device."""

    op: str
    dims: Dims
    dtype: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flops: float  # of the definition, in whatever unit does them

    @property
    def shape(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.dims.items())

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"

    @property
    def device(self) -> torch.device:
        return next(t.device for t in tree_leaves(self.args) if isinstance(t, Tensor))

    def run(self) -> Any:
        return getattr(torch.ops.vitcop, self.op)(*self.args, **self.kwargs)

    def reference(self) -> Any:
        """The op in plain PyTorch, as `torch.ops.vitcop_reference` has it."""
        return getattr(torch.ops.vitcop_reference, self.op)(*self.args, **self.kwargs)

    def compiled_reference(self) -> Callable[[], Any]:
        """torch.compile of the same function, which a registered op would hide from the compiler."""
        function = getattr(importlib.import_module(f"vitcop_kernels.ops.{self.op}.reference"), self.op)
        run = compiled(function)
        return lambda: run(*self.args, **self.kwargs)

    def bytes(self, outputs: Any) -> int:
        """Every input read once and every output written once."""
        flat = [t for t in tree_leaves((self.args, outputs)) if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in flat)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile on the first call: some Pythons and systems refuse it at once, and a benchmark goes on without."""

    @functools.cache
    def load() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    return lambda *args, **kwargs: load()(*args, **kwargs)


class Random:
    """Seeded tensors, made on the CPU so that every device gets the same."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype or self.dtype)

    def labels(self, batch: int, n: int, clusters: int) -> Tensor:
        return torch.randint(0, clusters, (batch, n), generator=self.generator)

    def keys(self, batch: int, heads: int, n: int, d: int) -> Tensor:
        """[B, H, N, d] as a projection leaves them: token by token."""
        return self.normal(batch, n, heads, d).transpose(1, 2)

    def plan(self, batch: int, n: int, budget: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        clusters = max(1, budget // 5)
        scores = torch.rand(batch, n, generator=self.generator)
        return torch.ops.vitcop_reference.plan_tokens(self.labels(batch, n, clusters), scores, clusters, budget)

    def features(self, batch: int, n: int, width: int) -> tuple[Tensor, Tensor]:
        x, places = tokens(n, width, batch)
        return x.to(self.dtype), places


def _vic(c: Dims, r: Random) -> Any:
    return (*r.features(c["batch"], c["tokens"], c["width"]), D_C, TAU, c["clusters"]), {}


def _varlen(c: Dims, r: Random) -> Any:
    x, places = r.features(c["batch"], c["tokens"], c["width"])
    bounds = torch.arange(c["batch"] + 1, dtype=torch.int32) * c["tokens"]
    return (x.flatten(0, 1), places.repeat(c["batch"], 1), bounds, c["tokens"], D_C, TAU, c["clusters"]), {}


def _saliency(c: Dims, r: Random) -> Any:
    query = r.normal(c["batch"], c["heads"], c["queries"], c["head_dim"])
    return (query, r.keys(c["batch"], c["heads"], c["tokens"], c["head_dim"])), {}


def _select(c: Dims, r: Random) -> Any:
    return (r.normal(c["batch"], c["tokens"]), c["keep"]), {}


def _key_norms(c: Dims, r: Random) -> Any:
    return (r.keys(c["batch"], c["heads"], c["tokens"], c["head_dim"]),), {}


def _key_proj(c: Dims, r: Random) -> Any:
    hidden = r.normal(c["batch"], c["tokens"], c["width"])
    return (hidden, r.normal(c["width"], c["width"], scale=c["width"] ** -0.5)), {"num_heads": c["heads"]}


def _key_proj_norms(c: Dims, r: Random) -> Any:
    args, kwargs = _key_proj(c, r)
    return (*args, None, r.normal(c["width"], scale=0.1) + 1), kwargs


def _plan(c: Dims, r: Random) -> Any:
    labels = r.labels(c["batch"], c["tokens"], c["clusters"])
    return (labels, r.normal(c["batch"], c["tokens"], dtype=torch.float32), c["clusters"], c["budget"]), {}


def _segment_mean(c: Dims, r: Random) -> Any:
    perm, offsets, _, _ = r.plan(c["batch"], c["tokens"], c["budget"])
    return (r.normal(c["batch"], c["tokens"], c["width"]), perm, offsets), {}


def _segment_mean_backward(c: Dims, r: Random) -> Any:
    perm, offsets, _, _ = r.plan(c["batch"], c["tokens"], c["budget"])
    return (r.normal(c["batch"], offsets.shape[1] - 1, c["width"]), perm, offsets), {}


def _expand(c: Dims, r: Random) -> Any:
    perm, offsets, anchors, merged = r.plan(c["batch"], c["tokens"], c["budget"])
    slots = (torch.arange(c["tokens"]) + c["text"] // 2).expand(c["batch"], -1).contiguous()
    sizes = {"num_slots": c["tokens"] + c["text"], "out_len": c["text"] + anchors.shape[1]}
    return (slots, anchors, perm, offsets, merged), sizes


def _compact(c: Dims, r: Random) -> Any:
    args, kwargs = _expand(c, r)
    whole = torch.ops.vitcop_reference.expand_plan(*args, **kwargs)
    n = c["tokens"] + c["text"]
    rotation = [r.normal(1, n, c["head_dim"]) for _ in range(2)]
    return (r.normal(c["batch"], n, c["width"]), [*rotation, torch.arange(n)[None]], *whole[:3]), {}


def _pairs(c: Dims) -> float:
    return c["batch"] * c["tokens"] * (c["tokens"] + 1) / 2


def _cluster_flops(c: Dims) -> float:
    """Half of the distance matrix, which is symmetric; and a few operations on each entry."""
    return 2.0 * _pairs(c) * c["width"] + 8.0 * _pairs(c)


def _attention_flops(c: Dims) -> float:
    return (2.0 * c["head_dim"] + 5.0) * c["batch"] * c["heads"] * c["queries"] * c["tokens"]


def _size(*names: str, each: float = 1.0) -> Callable[[Dims], float]:
    return lambda c: each * math.prod(c[name] for name in names)


_CLUSTERS = _share("tokens", 0.15)
_BUDGET = _share("tokens", 0.45)  # of retention 1/9: 77 of 172
_MERGE: dict[str, Default] = {"batch": 1, "tokens": 172, "width": 4096, "budget": _BUDGET}
_PROJECT: dict[str, Default] = {"batch": 1, "tokens": 172, "width": 4096, "heads": 32}
_PROJECT_FLOPS = _size("batch", "tokens", "width", "width", each=2.0)
_EXPAND: dict[str, Default] = {"batch": 1, "tokens": 172, "text": 57, "budget": _BUDGET}
SPECS: dict[str, Spec] = {
    "vic_cluster": Spec({"batch": 1, "tokens": 172, "width": 1024, "clusters": _CLUSTERS}, _vic, _cluster_flops),
    "vic_cluster_varlen": Spec(
        {"batch": 5, "tokens": 172, "width": 1024, "clusters": _CLUSTERS}, _varlen, _cluster_flops
    ),
    "attention_saliency": Spec(
        {"batch": 1, "heads": 16, "queries": 1, "tokens": 577, "head_dim": 64}, _saliency, _attention_flops
    ),
    "select_tokens": Spec(
        {"batch": 1, "tokens": 576, "keep": _share("tokens", 0.3)}, _select, _size("batch", "tokens", each=4.0)
    ),
    "key_norms": Spec(
        {"batch": 1, "heads": 32, "tokens": 172, "head_dim": 128},
        _key_norms,
        _size("batch", "heads", "tokens", "head_dim", each=2.0),
    ),
    "key_proj": Spec(_PROJECT, _key_proj, _PROJECT_FLOPS),
    "key_proj_norms": Spec(_PROJECT, _key_proj_norms, _PROJECT_FLOPS),
    "plan_tokens": Spec(
        {"batch": 1, "tokens": 172, "clusters": _share("tokens", 0.12), "budget": _BUDGET}, _plan, lambda c: 0.0
    ),
    "segment_mean": Spec(_MERGE, _segment_mean, _size("batch", "tokens", "width")),
    "segment_mean_backward": Spec(_MERGE, _segment_mean_backward, _size("batch", "tokens", "width")),
    "expand_plan": Spec(_EXPAND, _expand, lambda c: 0.0),
    "compact_sequence": Spec(
        {**_EXPAND, "width": 4096, "head_dim": 128}, _compact, lambda c: 1.0 * c["batch"] * c["width"] * c["tokens"]
    ),
}
DTYPES = ("float32", "bfloat16", "float16")


def dims_of(op: str, given: Mapping[str, int] | None = None) -> Dims:
    """All dimensions of the op, defaults filled in.

    Raises ValueError, naming the dimension, where one is not the op's or out of range.
    """
    if op not in SPECS:
        raise ValueError(f"op: expected one of {', '.join(SPECS)}, got {op!r}")
    given, spec = dict(given or {}), SPECS[op]
    for name, size in given.items():
        if name not in spec.dims:
            raise ValueError(f"{name}: {op} has no such dimension; expected some of {', '.join(spec.dims)}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    dims: Dims = {}
    for name, default in spec.dims.items():
        dims[name] = given.get(name, default(dims) if callable(default) else default)
    for part in ("clusters", "keep", "budget"):
        if dims.get(part, 1) > dims["tokens"]:
            raise ValueError(f"{part}: expected at most the {dims['tokens']} tokens, got {dims[part]}")
    if op.startswith("key_proj") and dims["width"] % dims["heads"]:
        raise ValueError(f"heads: expected a divisor of width {dims['width']}, got {dims['heads']}")
    return dims


def build(
    op: str,
    given: Mapping[str, int] | None = None,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Case:
    """The op with inputs of these dimensions. Raises ValueError naming what cannot be."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    dims = dims_of(op, given)
    args, kwargs = SPECS[op].make(dims, Random(seed, getattr(torch, dtype)))
    args = tree_map_only(Tensor, lambda t: t.to(device), args)
    return Case(op, dims, dtype, args, kwargs, SPECS[op].flops(dims))
