"""A pruned LLaVA from scratch: one conversation, no cache, no batch, no hooks, every token computed in plain loops.

Only weights are taken from the model, and VIC and the plan from the reference ops (tested on their own).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import slow_vision
import torch
from torch import Tensor

REFERENCE = torch.ops.vitcop_reference


@dataclass
class Turn:
    """What one prefill adds: token ids, and the images among them."""

    ids: list[int]
    pixels: Any = None  # as the family's prompt has them


@dataclass
class Token:
    hidden: Tensor  # [C]
    position: int
    column: int  # in the conversation
    turn: int
    image: int = -1  # image, tile or frame within the turn; -1: text
    patch: int = -1  # among the tokens of its image or video
    given: int = -1  # image or video of the turn, as the user gave it
    place: tuple[float, float] = (0, 0)  # within the tile or frame
    visual: int = -1  # among the visual tokens of the turn
    feature: Tensor = field(default_factory=lambda: torch.empty(0))
    saliency: float = 0.0
    state: Tensor | None = None  # of the tower, before the projector


OTHERS: dict[str, Callable[..., Tensor]] = {}
"""`logits` of families whose decoder is another, by `config.model_type`."""


def logits(
    model: Any,
    method: Any,
    turns: list[Turn],
    answer: list[int],
    kept: list[Any] | None = None,
    states: list[dict[int, Tensor]] | None = None,
    per_image: bool = False,
) -> Tensor:
    """[columns, vocabulary] logits of the whole conversation followed by `answer`; NaN where a token was pruned.

    The last turn's ids and the answer belong to one sequence; only prompts are pruned. `kept` (bfloat16): take the
    visual tokens of each stage from there instead of ranking them. `states`: gets the input of the first layer and the
    output of each one, the last after the final norm, by column. `per_image`: the tokens of each image or video are
    chosen and merged as if there were no others.
    """
    if model.config.model_type in OTHERS:
        return OTHERS[model.config.model_type](model, method, turns, answer, kept, states, per_image)
    base = model.model
    decoder, config = base.language_model, model.config.text_config
    num_layers = config.num_hidden_layers
    shallow, deep = method.layers(num_layers)
    tokens: list[Token] = []
    for number, turn in enumerate(turns):
        tokens += embed(model, turn, number, start=len(tokens))
    pools: dict[tuple[int, int], int] = {}  # tokens that share a budget: (turn, image), all of a turn's images are 0
    for token in tokens:
        token.given = token.given if per_image or token.image < 0 else 0
        if token.image >= 0:
            pools[token.turn, token.given] = pools.get((token.turn, token.given), 0) + 1
    ends = [max(t.column for t in tokens if t.turn == number) for number in range(len(turns))]
    for token in answer:
        hidden = base.get_input_embeddings().weight[token]
        tokens.append(Token(hidden, len(tokens), len(tokens), turn=len(turns)))
    columns = len(tokens)

    counts = {pool: method.counts(num_layers, total) for pool, total in pools.items()}
    for pool, count in counts.items():  # Stage I
        visual = [t for t in tokens if (t.turn, t.given) == pool]
        best = sorted(visual, key=lambda t: (math.isnan(t.saliency), -t.saliency, t.visual))[: count[0]]
        if kept is not None:
            best = [t for t in visual if t.visual in kept[0]]
        tokens = drop(tokens, visual, best)
    if method.option("positions") != "original":
        for place, token in enumerate(tokens):
            token.position = place

    previous: dict[int, Tensor] = {}  # what the layer before got
    for index, layer in enumerate(decoder.layers):
        stage = 1 if index == shallow else 2
        ranked, restarted = [], set()
        for pool, count in counts.items() if index in (shallow, deep) else ():
            visual = [t for t in tokens if (t.turn, t.given) == pool]
            if count[stage] < len(visual):
                scores = score(model, method, index, tokens, visual, ends[pool[0]], previous)
                ranked.append((pool, count, visual, scores))
        for pool, count, visual, scores in ranked:
            if index == shallow and method.saliency != "key_norm_only":
                tokens = merge(method, num_layers, pools[pool], count[1], tokens, visual, scores)
            else:
                order = sorted(range(len(visual)), key=lambda i: (scores[i], i))[: count[stage]]
                best = [visual[i] for i in order]
                if kept is not None:
                    best = [t for t in visual if t.visual in kept[stage]]
                if index == deep and method.option("positions") == "released" and pool[0] not in restarted:
                    restarted.add(pool[0])
                    turn = [t for t in tokens if t.turn == pool[0]]
                    first = turn[0].position
                    for place, token in enumerate(turn):
                        token.position = first + place
                tokens = drop(tokens, visual, best)
        previous = {id(t): t.hidden for t in tokens}
        if states is not None and not index:
            states.append({t.column: t.hidden for t in tokens})
        run_layer(config, layer, tokens)
        if states is not None:
            states.append({t.column: t.hidden for t in tokens})

    if states is not None:
        states[-1] = {t.column: rms_norm(decoder.norm, t.hidden) for t in tokens}
    out = torch.full((columns, config.vocab_size), math.nan)
    for token in tokens:
        out[token.column] = (model.lm_head.weight @ rms_norm(decoder.norm, token.hidden)).float()
    return out


def drop(tokens: list[Token], visual: list[Token], best: list[Token]) -> list[Token]:
    gone = {id(t) for t in visual} - {id(t) for t in best}
    return [t for t in tokens if id(t) not in gone]


def embed(model: Any, turn: Turn, number: int, start: int) -> list[Token]:
    """Tokens of one turn, visual ones with what the vision tower says about them."""
    table = model.model.get_input_embeddings().weight
    images = slow_vision.see(model, turn.pixels)
    placeholders = slow_vision.placeholders(model)
    waiting: dict[str, list[slow_vision.Seen]] = {kind: [] for kind in images}  # of the image that has begun
    begin: dict[str, int] = {}
    length: dict[str, int] = {}
    tokens: list[Token] = []
    visual = segments = 0
    given, behind = -1, -1  # the latest image, and where a tile of it would have to stand
    for token_id in turn.ids:
        column = start + len(tokens)
        kind = placeholders.get(token_id)
        if kind is None:
            tokens.append(Token(table[token_id], column, column, number))
            continue
        if not waiting[kind]:
            waiting[kind] = images[kind].pop(0)
            given += model.config.model_type != "internvl" or column != behind
            begin[kind], length[kind] = segments, len(waiting[kind])
            segments += 1 + max(seen.part for seen in waiting[kind])
        seen = waiting[kind].pop(0)
        segment, patch = begin[kind] + seen.part, length[kind] - 1 - len(waiting[kind])
        what = seen.place, visual, seen.feature, seen.saliency, seen.state
        tokens.append(Token(seen.hidden, column, column, number, segment, patch, given, *what))
        visual += 1
        behind = column + 1
    assert not any(waiting.values()) and not any(images.values())
    return tokens


def rms_norm(module: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(x.float().pow(2).mean() + module.variance_epsilon)
    return module.weight * (x.float() * scale).to(x.dtype)


def rotate(config: Any, heads: Tensor, position: int) -> Tensor:
    """RoPE of one token's vectors [heads, d]."""
    size = heads.shape[-1]
    half = size // 2
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    angle = position / theta ** (torch.arange(half) * 2 / size)
    cos, sin = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    a, b = heads[:, :half], heads[:, half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1)


def project(config: Any, layer: Any, hidden: Tensor, name: str, position: int | None) -> Tensor:
    """[heads, d] query, key or value of one token."""
    size = config.hidden_size // config.num_attention_heads
    heads = getattr(layer.self_attn, name)(rms_norm(layer.input_layernorm, hidden)).view(-1, size)
    return heads if position is None else rotate(config, heads, position)


def run_layer(config: Any, layer: Any, tokens: list[Token]) -> None:
    repeat = config.num_attention_heads // config.num_key_value_heads
    keys = torch.stack([project(config, layer, t.hidden, "k_proj", t.position) for t in tokens])
    values = torch.stack([project(config, layer, t.hidden, "v_proj", None) for t in tokens])
    results = []
    for place, token in enumerate(tokens):
        query = project(config, layer, token.hidden, "q_proj", token.position)
        heads = []
        for head in range(config.num_attention_heads):
            k, v = keys[: place + 1, head // repeat], values[: place + 1, head // repeat]
            heads.append((k @ query[head] / math.sqrt(len(query[head]))).float().softmax(0).to(v.dtype) @ v)
        hidden = token.hidden + layer.self_attn.o_proj(torch.cat(heads))
        results.append(hidden + layer.mlp(rms_norm(layer.post_attention_layernorm, hidden)))
    for token, hidden in zip(tokens, results, strict=True):
        token.hidden = hidden


def score(
    model: Any, method: Any, index: int, tokens: list[Token], visual: list[Token], end: int, previous: Any
) -> list[float]:
    """One number per visual token, smaller is better."""
    config = model.config.text_config
    source, hidden = index, {id(t): t.hidden for t in tokens}
    if method.option("key_source") == "previous":
        source, hidden = index - 1, previous
    layer = model.model.language_model.layers[source]
    if method.saliency == "attention":
        last = next(t for t in tokens if t.column == end)
        seen = [t for t in tokens if t.column <= end]
        repeat = config.num_attention_heads // config.num_key_value_heads
        query = project(config, layer, hidden[id(last)], "q_proj", last.position)
        keys = torch.stack([project(config, layer, hidden[id(t)], "k_proj", t.position) for t in seen])
        received = torch.zeros(len(seen))
        for head in range(config.num_attention_heads):
            received += (keys[:, head // repeat] @ query[head] / math.sqrt(len(query[head]))).float().softmax(0)
        by_token = {id(t): float(r) for t, r in zip(seen, received, strict=True)}
        return [-by_token[id(t)] for t in visual]
    norms = []
    for token in visual:
        key = project(config, layer, hidden[id(token)], "k_proj", None).float()
        norms.append(float(key.norm() if method.option("heads") == "l2" else key.mean(0).norm()))
    return norms


def merge(
    method: Any, num_layers: int, total: int, budget: int, tokens: list[Token], visual: list[Token], scores: list[float]
) -> list[Token]:
    """Stage II: each segment clustered on its own, then one plan for the sample."""
    alpha = method.center_ratio
    if method.merged_share is not None:
        margin = 1e-9 if method.semantics == "released" else -1e-9
        alpha = (max(1, round(method.merged_share * budget)) + margin) / len(visual)
    elif alpha is None:
        alpha = 0.09 + 0.27 * method.schedule(num_layers, total).retention
    labels, clusters = [-1] * len(visual), 0
    where = {id(token): i for i, token in enumerate(visual)}
    for image in sorted({t.image for t in visual}):
        members = [t for t in visual if t.image == image]
        features = torch.stack([t.feature if method.option("features") == "clip_key" else t.hidden for t in members])
        positions = torch.tensor([t.place for t in members], dtype=torch.float32)
        centers = alpha * len(members)
        centers = max(1, int(centers)) if method.semantics == "released" else math.ceil(centers)
        found = REFERENCE.vic_cluster(features, positions, method.d_c, method.tau, centers, semantics=method.semantics)
        for token, label in zip(members, found[0].tolist(), strict=True):
            labels[where[id(token)]] = label + clusters if label >= 0 else -1
        clusters += centers
    plan = REFERENCE.plan_tokens(
        torch.tensor(labels), torch.tensor(scores), clusters, budget, quota=method.option("quota")
    )
    perm, offsets, anchors, merged = (p.tolist() for p in plan)
    new = {}
    for segment, anchor in enumerate(anchors):
        members = [visual[i] for i in perm[offsets[segment] : offsets[segment + 1]]]
        mean = torch.stack([t.hidden for t in members]).double().mean(0)
        if merged[segment] and method.option("merge") == "anchor_plus_mean":
            mean = visual[anchor].hidden.double() + mean
        new[id(visual[anchor])] = mean.to(visual[0].hidden.dtype)
    tokens = drop(tokens, visual, [visual[a] for a in anchors])
    for token in tokens:
        token.hidden = new.get(id(token), token.hidden)
    return tokens
