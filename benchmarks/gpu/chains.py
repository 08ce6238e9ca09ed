"""What is timed: an op at a shape of the table, or a stage as a chain of ops; and the same in eager PyTorch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from benchmarks import peers
from vitcop_kernels.testing import table
from vitcop_kernels.testing.inputs import Random
from vitcop_kernels.testing.judge import verify
from vitcop_kernels.testing.op import Shape

D_C, TAU = 8.0, 0.6
Call = Callable[..., Any]  # (op, *args, **kwargs) -> what the op returns
STAGES = (
    (
        "stage2",
        Shape({"tokens": 288, "text": 57, "width": 4096, "heads": 32, "clusters": 52, "budget": 253}, target_us=15),
    ),
    ("stage3", Shape({"tokens": 77, "text": 57, "width": 4096, "heads": 32, "keep": 15}, target_us=8)),
    (
        "selection",
        Shape(
            {"tokens": 576, "text": 57, "width": 4096, "first": 172, "clusters": 21, "budget": 77, "keep": 15},
            target_us=50,
        ),
    ),
    (
        "selection",
        Shape(
            {"tokens": 2880, "text": 57, "width": 4096, "first": 864, "clusters": 70, "budget": 386, "keep": 77},
            target_us=120,
        ),
    ),
)
TINY_STAGES = (
    ("stage2", Shape({"tokens": 24, "text": 6, "width": 32, "heads": 2, "clusters": 4, "budget": 10}, target_us=15)),
    ("stage3", Shape({"tokens": 10, "text": 5, "width": 32, "heads": 2, "keep": 4}, target_us=8)),
    (
        "selection",
        Shape(
            {"tokens": 36, "text": 5, "width": 32, "first": 24, "clusters": 4, "budget": 10, "keep": 4}, target_us=50
        ),
    ),
)


def ours(op: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(torch.ops.vitcop, op)(*args, **kwargs)


def eager(op: str, *args: Any, **kwargs: Any) -> Any:
    if op in ("plan_tokens", "expand_plan"):  # nobody writes these another way
        return getattr(torch.ops.vitcop_reference, op)(*args, **kwargs)
    return peers.EAGER[op](*args, **kwargs)


def checked(call: Call) -> Call:
    """`call` with every answer held to the truth, on what the op was really given."""

    def run(op: str, *args: Any, **kwargs: Any) -> Any:
        got = call(op, *args, **kwargs)
        verify(op, args, kwargs, got)
        return got

    return run


@dataclass
class Chain:
    """Something to time with inputs on the device."""

    name: str
    shape: Shape
    inputs: list[Tensor]
    run: Callable[..., Any]  # (call, *inputs) -> outputs
    bytes: float = 0.0  # that no implementation avoids, of one op
    flops: float = 0.0
    others: dict[str, Callable[..., Any]] = field(default_factory=dict)  # (*inputs): what it is compared with
    no_graph: set[str] = field(default_factory=set)  # of the others: they wait for the device

    @property
    def dims(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.shape.dims.items())


def build(name: str, shape: Shape, device: torch.device) -> Chain:
    if name in table.TABLE:
        return _op(name, shape, device)
    random = Random(len(name), torch.bfloat16)
    chain = {"stage2": _stage2, "stage3": _stage3, "selection": _selection}[name](shape, random)
    chain.inputs = [t.to(device) for t in chain.inputs]
    if shape.dims["tokens"] <= 576:  # nobody clusters ragged tiles in eager PyTorch
        chain.others["eager"] = lambda *inputs: chain.run(eager, *inputs)
    return chain


def cases(small: bool) -> list[tuple[str, Shape]]:
    """On a GPU the shapes in half precision, and those of scores and indices."""
    ops = table.real(small)
    if not small:
        ops = [(op, shape) for op, shape in ops if shape.dtype == "bfloat16" or table.TABLE[op].exact]
    return [*ops, *(TINY_STAGES if small else STAGES)]


def _op(op: str, shape: Shape, device: torch.device) -> Chain:
    case = table.build(op, shape.dims, shape.dtype, device)
    leaves, spec = tree_flatten(case.args)
    tensors = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def run(call: Call, *inputs: Tensor) -> Any:
        given = list(leaves)
        for k, t in zip(tensors, inputs, strict=True):
            given[k] = t
        return call(op, *tree_unflatten(given, spec), **case.kwargs)

    chain = Chain(op, shape, [leaves[k] for k in tensors], run, case.bytes(case.reference()), case.flops)
    if op in peers.EAGER:
        chain.others["eager"] = lambda *inputs: run(eager, *inputs)
    if op == "key_proj_norms":
        chain.others["projection alone"] = lambda hidden, weight, rms: F.linear(hidden, weight)
    if op == "vic_cluster":
        clusters, tokens = case.dims["clusters"], case.dims["tokens"]

        def as_written(x: Tensor, places: Tensor) -> None:
            for sample in x:
                peers.cluster_as_released(sample.float(), places, D_C, TAU, clusters)

        if tokens <= 864:
            chain.others["as the authors wrote it"] = as_written
        try:
            from flash_kmeans import batch_kmeans_Euclid
        except ImportError:
            pass
        else:
            more = {"max_iters": 10} if "max_iters" in inspect.signature(batch_kmeans_Euclid).parameters else {}
            chain.others["flash-kmeans"] = lambda x, places: batch_kmeans_Euclid(x, n_clusters=clusters, **more)
        chain.no_graph = {"as the authors wrote it", "flash-kmeans"}
    return chain


# -------------------------------------------------------------------------------------------------------------- stages
def _sequence(c: Mapping[str, int], r: Random, head: int) -> list[Tensor]:
    """Slots of the visual tokens among the text, hidden states, position ids, cos and sin."""
    n = c["tokens"] + c["text"]
    slots = (torch.arange(c["tokens"]) + c["text"] // 2)[None]
    return [slots, r.normal(1, n, c["width"]), torch.arange(n)[None], r.normal(1, n, head), r.normal(1, n, head)]


def _compact(call: Call, slots: Tensor, plan: Any, x: Tensor, companions: Sequence[Tensor]) -> Any:
    """(hidden states, companions, slots) of the shortened sequence, as the engine makes it.

    plan: what plan_tokens returns, or the tokens that are kept.
    """
    perm, offsets, anchors, merged = plan if isinstance(plan, (tuple, list)) else (None, None, plan, None)
    out = x.shape[1] - slots.shape[1] + anchors.shape[1]
    whole = call("expand_plan", slots, anchors, perm, offsets, merged, num_slots=x.shape[1], out_len=out)
    return *call("compact_sequence", x, list(companions), *whole[:3]), whole[5]


def _stage2(shape: Shape, r: Random) -> Chain:
    c = shape.dims
    head = c["width"] // c["heads"]

    def run(call: Call, key: Tensor, label: Tensor, slots: Tensor, x: Tensor, *companions: Tensor) -> Any:
        plan = call("plan_tokens", label, call("key_norms", key), c["clusters"], c["budget"])
        return _compact(call, slots, plan, x, companions)[:2]

    labels = r.labels(1, c["tokens"], c["clusters"])
    return Chain("stage2", shape, [r.keys(1, c["heads"], c["tokens"], head), labels, *_sequence(c, r, head)], run)


def _stage3(shape: Shape, r: Random) -> Chain:
    c = shape.dims
    head = c["width"] // c["heads"]

    def run(call: Call, key: Tensor, slots: Tensor, x: Tensor, *companions: Tensor) -> Any:
        kept = call("select_tokens", call("key_norms", key), c["keep"])
        return _compact(call, slots, kept, x, companions)[:2]

    return Chain("stage3", shape, [r.keys(1, c["heads"], c["tokens"], head), *_sequence(c, r, head)], run)


def _selection(shape: Shape, r: Random) -> Chain:
    """All that ViTCoP does to choose and to shorten: Stage I, VIC, Stage II with keys of its layer, Stage III alike."""
    c = shape.dims
    heads, tiles = max(1, c["width"] // 128), max(1, c["tokens"] // 576)
    each, k, tower, vision = c["tokens"] // tiles, c["clusters"], 16, 1024
    features, places = r.features(1, c["tokens"], vision)
    query, key = r.normal(tiles, tower, 1, vision // tower), r.keys(tiles, tower, each + 1, vision // tower)
    weight, rms = r.normal(c["width"], c["width"], scale=c["width"] ** -0.5), r.normal(c["width"], scale=0.1) + 1
    inputs = [query, key, features, places, weight, rms, *_sequence(c, r, c["width"] // heads)]

    def norms(call: Call, h: Tensor, slots: Tensor, w: Tensor, rms: Tensor) -> Any:
        return call("key_proj_norms", h[0].index_select(0, slots[0])[None], w, None, rms, num_heads=heads)

    def labels(call: Call, kept: Tensor, x: Tensor, places: Tensor) -> Tensor:
        survivors, at = x[0].index_select(0, kept[0]), places.index_select(0, kept[0])
        if tiles == 1:
            return call("vic_cluster", survivors, at, D_C, TAU, k)[0]
        # Only the device knows what Stage I kept of a tile.
        tile = kept[0].div(each, rounding_mode="floor")
        lengths = tile.new_zeros(tiles).scatter_add_(0, tile, torch.ones_like(tile))
        wanted = (lengths.double() * k / each).ceil().clamp(min=1).long()
        bounds = F.pad(lengths.cumsum(0), (1, 0))
        found = call("vic_cluster_varlen", survivors, at, bounds, each, D_C, TAU, k, center_counts=wanted)
        return torch.where(found[0] < 0, -1, found[0] + tile * k)

    def run(
        call: Call, query: Tensor, key: Tensor, x: Tensor, places: Tensor, w: Tensor, rms: Tensor, *rest: Tensor
    ) -> Any:
        slots, h, *companions = rest
        saliency = call("attention_saliency", query, key)[:, 1:].reshape(1, -1)
        kept = call("select_tokens", saliency, c["first"], largest=True)
        h, moved, slots = _compact(call, slots, kept, h, companions)
        label = labels(call, kept, x, places)
        plan = call("plan_tokens", label[None], norms(call, h, slots, w, rms), k * tiles, c["budget"])
        h, moved, slots = _compact(call, slots, plan, h, moved)
        return _compact(call, slots, call("select_tokens", norms(call, h, slots, w, rms), c["keep"]), h, moved)[:2]

    return Chain("selection", shape, inputs, run)
