"""Each case as a chain of ops on its inputs: one text for the ops, their check, and what they are compared with."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vitcop_kernels  # noqa: F401  (registers torch.ops.vitcop)
from benchmarks import baselines
from benchmarks.cost.cases import Case, parts
from vitcop_kernels.bench.inputs import tokens

D_C, TAU = 8.0, 0.6
Call = Callable[..., Any]  # (op, *args, **kwargs) -> what the op returns


def ours(op: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(torch.ops.vitcop, op)(*args, **kwargs)


def replacing(replaced: dict[str, Call]) -> Call:
    """`ours` with some ops exchanged."""

    def call(op: str, *args: Any, **kwargs: Any) -> Any:
        return replaced[op](*args, **kwargs) if op in replaced else ours(op, *args, **kwargs)

    return call


@dataclass
class Chain:
    """A case with inputs on the device."""

    case: Case
    inputs: list[Tensor]
    run: Callable[..., Any]  # (call, *inputs) -> outputs
    ops: set[str]
    others: dict[str, Callable[..., Any]] = field(default_factory=dict)  # (*inputs): what it is compared with
    no_graph: set[str] = field(default_factory=set)  # of the others: they wait for the device


def build(case: Case, device: torch.device, seed: int = 0) -> Chain:
    generator = torch.Generator().manual_seed(seed + len(case.name))
    dtype = getattr(torch, case.dtype)
    c = case.dims

    def normal(*shape: int, scale: float = 1.0, kind: torch.dtype = dtype) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, kind)

    def features(n: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
        found, places = tokens(n, width, batch)
        return found.to(device, dtype), places.to(device)

    def keys(batch: int, heads: int, n: int, d: int) -> Tensor:
        return normal(batch, n, heads, d).transpose(1, 2)

    def labels(batch: int, n: int, k: int) -> Tensor:
        return torch.randint(0, k, (batch, n), generator=generator).to(device)

    def plan_of(n: int, s: int, batch: int = 1) -> Any:
        clusters = max(1, s // 5)
        scores = torch.rand(batch, n, generator=generator).to(device)
        return torch.ops.vitcop_reference.plan_tokens(labels(batch, n, clusters), scores, clusters, s)

    def sequence(batch: int, visual: int, head: int) -> list[Tensor]:
        """Slots of the visual tokens among T of text, hidden states, position ids, cos and sin."""
        n = visual + c["T"]
        slots = (torch.arange(visual, device=device) + c["T"] // 2).expand(batch, -1).contiguous()
        ids = torch.arange(n, device=device)[None]
        return [slots, normal(batch, n, c["C"]), ids, normal(1, n, head), normal(1, n, head)]

    op = case.op
    inputs: list[Tensor]
    if op == "vic_cluster":
        inputs = list(features(c["N"], c["D"], c["B"]))

        def run(call: Call, x: Tensor, places: Tensor) -> Any:
            return call("vic_cluster", x, places, D_C, TAU, c["K"])

    elif op == "vic_cluster_varlen":
        x, places = features(c["T"], c["D"])
        bounds = torch.linspace(0, c["T"], c["B"] + 1).round().to(torch.int32).to(device)
        inputs = [x[0], places, bounds]

        def run(call: Call, x: Tensor, places: Tensor, bounds: Tensor) -> Any:
            return call("vic_cluster_varlen", x, places, bounds, c["L"], D_C, TAU, c["K"])

    elif op == "attention_saliency":
        inputs = [normal(c["B"], c["H"], 1, c["d"]), keys(c["B"], c["H"], c["N"], c["d"])]

        def run(call: Call, query: Tensor, key: Tensor) -> Any:
            return call("attention_saliency", query, key)

    elif op == "select_tokens":
        inputs = [normal(c["B"], c["N"], kind=torch.float32)]

        def run(call: Call, scores: Tensor) -> Any:
            return call("select_tokens", scores, c["K"])

    elif op == "key_norms":
        inputs = [keys(c["B"], c["H"], c["N"], c["d"])]

        def run(call: Call, key: Tensor) -> Any:
            return call("key_norms", key)

    elif op in ("key_proj", "key_proj_norms"):
        inputs = [normal(c["B"], c["N"], c["C"]), normal(c["J"], c["C"], scale=c["C"] ** -0.5)]
        if op == "key_proj_norms":
            inputs.append(normal(c["C"], scale=0.1) + 1)

        def run(call: Call, hidden: Tensor, weight: Tensor, *rms: Tensor) -> Any:
            return call(op, hidden, weight, None, *rms, num_heads=c["H"])

    elif op == "plan_tokens":
        inputs = [labels(c["B"], c["N"], c["K"]), normal(c["B"], c["N"], kind=torch.float32)]

        def run(call: Call, label: Tensor, scores: Tensor) -> Any:
            return call("plan_tokens", label, scores, c["K"], c["S"])

    elif op == "segment_mean":
        plan = plan_of(c["N"], c["S"], c["B"])
        inputs = [normal(c["B"], c["N"], c["C"]), plan[0], plan[1]]

        def run(call: Call, x: Tensor, perm: Tensor, offsets: Tensor) -> Any:
            return call("segment_mean", x, perm, offsets)

    elif op == "segment_mean_backward":
        plan = plan_of(c["N"], c["S"], c["B"])
        inputs = [normal(c["B"], c["S"], c["C"]), plan[0], plan[1]]

        def run(call: Call, grad: Tensor, perm: Tensor, offsets: Tensor) -> Any:
            return call("segment_mean_backward", grad, perm, offsets)

    elif op in ("expand_plan", "compact_sequence"):
        perm, offsets, anchors, merged = plan_of(c["V"], c["S"], c["B"])
        slots = (torch.arange(c["V"], device=device) + (c["n"] - c["V"]) // 2).expand(c["B"], -1).contiguous()
        sizes = {"num_slots": c["n"], "out_len": c["n"] - c["V"] + c["S"]}
        inputs = [slots, anchors, perm, offsets, merged]

        def run(call: Call, *plan: Tensor) -> Any:
            return call("expand_plan", *plan, **sizes)

        if op == "compact_sequence":
            whole = torch.ops.vitcop_reference.expand_plan(*inputs, **sizes)
            rotation = [normal(1, c["n"], c["d"]) for _ in range(2)]
            ids = torch.arange(c["n"], device=device)[None]
            inputs = [normal(c["B"], c["n"], c["C"]), *rotation, ids, *whole[:3]]

            def run(call: Call, x: Tensor, cos: Tensor, sin: Tensor, ids: Tensor, *plan: Tensor) -> Any:
                return call("compact_sequence", x, [cos, sin, ids], *plan)

    elif op == "stage2":
        d = c["C"] // c["H"]
        inputs = [keys(c["B"], c["H"], c["N"], d), labels(c["B"], c["N"], c["K"]), *sequence(c["B"], c["N"], d)]

        def run(call: Call, key: Tensor, label: Tensor, slots: Tensor, x: Tensor, *companions: Tensor) -> Any:
            plan = call("plan_tokens", label, call("key_norms", key), c["K"], c["S"])
            return _compact(call, slots, plan, x, companions)[:2]

    elif op == "stage3":
        d = c["C"] // c["H"]
        inputs = [keys(c["B"], c["H"], c["N"], d), *sequence(c["B"], c["N"], d)]

        def run(call: Call, key: Tensor, slots: Tensor, x: Tensor, *companions: Tensor) -> Any:
            kept = call("select_tokens", call("key_norms", key), c["K"])
            return _compact(call, slots, kept, x, companions)[:2]

    elif op == "selection":
        return _selection(case, normal, keys, features, sequence)
    else:
        raise ValueError(f"case: expected an op or a stage, got {op!r}")
    chain = Chain(case, inputs, run, {part.op for part in parts(case)} - {"gather"})
    _add_others(chain)
    return chain


def _compact(call: Call, slots: Tensor, plan: Any, x: Tensor, companions: Sequence[Tensor]) -> Any:
    """(hidden states, companions, slots) of the shortened sequence, as vitcop.compaction makes it.

    plan: what plan_tokens returns, or the tokens that are kept. The product's fourth companion, the places of the
    slots, is left out: the same launch moves up to four.
    """
    perm, offsets, anchors, merged = plan if isinstance(plan, (tuple, list)) else (None, None, plan, None)
    out = x.shape[1] - slots.shape[1] + anchors.shape[1]
    whole = call("expand_plan", slots, anchors, perm, offsets, merged, num_slots=x.shape[1], out_len=out)
    return *call("compact_sequence", x, list(companions), *whole[:3]), whole[5]


def _selection(case: Case, normal: Any, keys: Any, features: Any, sequence: Any) -> Chain:
    """All that ViTCoP does to choose and to shorten: Stage I, VIC, Stage II with keys of its layer, Stage III alike."""
    c, heads = case.dims, max(1, case["C"] // 128)
    tiles = max(1, c["M"] // 576)
    each, k = c["M"] // tiles, c["K"]
    alpha = k / each  # K centres of a tile that is kept whole, of others their share
    x, places = features(c["M"], c["D"])
    weight, rms = normal(c["C"], c["C"], scale=c["C"] ** -0.5), normal(c["C"], scale=0.1) + 1
    inputs = [normal(tiles, c["H"], 1, c["D"] // c["H"]), keys(tiles, c["H"], each + 1, c["D"] // c["H"]), x, places,
              weight, rms, *sequence(1, c["M"], c["C"] // heads)]  # fmt: skip

    def run(
        call: Call, query: Tensor, key: Tensor, x: Tensor, places: Tensor, w: Tensor, r: Tensor, slots: Tensor,
        h: Tensor, *companions: Tensor,
    ) -> Any:  # fmt: skip
        saliency = call("attention_saliency", query, key)[:, 1:].reshape(1, -1)
        kept = call("select_tokens", saliency, c["N1"], largest=True)
        h, moved, slots = _compact(call, slots, kept, h, companions)
        survivors, at = x[0].index_select(0, kept[0]), places.index_select(0, kept[0])
        if tiles == 1:
            label = call("vic_cluster", survivors, at, D_C, TAU, k)[0]
        else:  # as vitcop.methods.vitcop has it: only the device knows what Stage I kept of a tile
            tile = kept[0].div(each, rounding_mode="floor")
            lengths = tile.new_zeros(tiles).scatter_add_(0, tile, torch.ones_like(tile))
            wanted = (lengths.double() * alpha).ceil().clamp(min=1).long()
            bounds = F.pad(lengths.cumsum(0), (1, 0))
            found = call("vic_cluster_varlen", survivors, at, bounds, each, D_C, TAU, k, center_counts=wanted)
            label = torch.where(found[0] < 0, -1, found[0] + tile * k)
        norms = call("key_proj_norms", h[0].index_select(0, slots[0])[None], w, None, r, num_heads=heads)
        plan = call("plan_tokens", label[None], norms, k * tiles, c["N2"])
        h, moved, slots = _compact(call, slots, plan, h, moved)
        norms = call("key_proj_norms", h[0].index_select(0, slots[0])[None], w, None, r, num_heads=heads)
        return _compact(call, slots, call("select_tokens", norms, c["N3"]), h, moved)[:2]

    chain = Chain(case, inputs, run, {part.op for part in parts(case)} - {"gather"})
    _add_others(chain)
    return chain


# ------------------------------------------------------------------------------------------------------- the other side
def _cluster(x: Tensor, places: Tensor, d_c: float, tau: float, k: int) -> tuple[Tensor, ...]:
    if x.dim() == 2:
        return baselines.cluster_with_cdist(x.float(), places, d_c, tau, k)
    found = [baselines.cluster_with_cdist(sample.float(), places, d_c, tau, k) for sample in x]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _segment_mean(x: Tensor, perm: Tensor, offsets: Tensor) -> Tensor:
    means = []
    for sample, order, bounds in zip(x, perm, offsets, strict=True):
        place = torch.arange(order.shape[0], device=x.device)
        segment = torch.searchsorted(bounds[1:].contiguous(), place, right=True)
        means.append(baselines.segment_mean_by_index_add(sample, segment[order.argsort()], bounds.diff()))
    return torch.stack(means)


def _compact_sequence(x: Tensor, companions: list[Tensor], perm: Tensor, offsets: Tensor, anchors: Tensor) -> Any:
    means = []
    for sample, order, bounds in zip(x, perm, offsets, strict=True):
        place = torch.arange(order.shape[0], device=x.device)
        segment = torch.searchsorted(bounds[1:].contiguous(), place, right=True)  # the last: dropped tokens
        rows = sample.index_select(0, order).float()
        total = rows.new_zeros(anchors.shape[1] + 1, x.shape[2]).index_add_(0, segment, rows)[:-1]
        means.append((total / bounds.diff()[:, None]).to(x.dtype))
    return torch.stack(means), [t.index_select(1, anchors[0]) for t in companions]


def _key_proj_norms(hidden: Tensor, weight: Tensor, bias: Any, rms: Tensor, *, num_heads: int) -> Tensor:
    return baselines.key_proj_norms(hidden, weight, rms, 1e-6)


EAGER: dict[str, Call] = {
    "vic_cluster": _cluster,
    "attention_saliency": baselines.attention_saliency,
    "select_tokens": lambda scores, k, largest=False: (
        scores.topk(k, largest=largest, sorted=False).indices.sort(-1).values
    ),
    "key_norms": baselines.key_norms_flat,
    "key_proj": lambda hidden, weight, bias, *, num_heads: baselines.key_proj(hidden, weight, num_heads),
    "key_proj_norms": _key_proj_norms,
    "plan_tokens": lambda *args: torch.ops.vitcop_reference.plan_tokens(*args),
    "segment_mean": _segment_mean,
    "expand_plan": lambda *args, **kwargs: torch.ops.vitcop_reference.expand_plan(*args, **kwargs),
    "compact_sequence": _compact_sequence,
}


def _eager(op: str, *args: Any, **kwargs: Any) -> Any:
    return EAGER[op](*args, **kwargs)


def _add_others(chain: Chain) -> None:
    case = chain.case
    if chain.ops <= set(EAGER):
        chain.others["eager"] = lambda *inputs: chain.run(_eager, *inputs)
    if case.op == "key_proj_norms":
        chain.others["projection alone"] = lambda hidden, weight, rms: F.linear(hidden, weight)
    if case.op == "vic_cluster":
        n, k = case["N"], case["K"]

        def as_written(x: Tensor, places: Tensor) -> None:
            for sample in x:
                baselines.cluster_as_released(sample.float(), places, D_C, TAU, k)

        if n <= 864:
            chain.others["as the authors wrote it"] = as_written
            chain.no_graph.add("as the authors wrote it")
        try:
            from flash_kmeans import batch_kmeans_Euclid
        except ImportError:
            return
        iterations = {"max_iters": 10} if "max_iters" in inspect.signature(batch_kmeans_Euclid).parameters else {}
        chain.others["flash-kmeans"] = lambda x, places: batch_kmeans_Euclid(x, n_clusters=k, **iterations)
        chain.no_graph.add("flash-kmeans")
