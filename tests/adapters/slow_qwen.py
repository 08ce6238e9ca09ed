"""A pruned Qwen-VL from scratch: one conversation, no cache, no batch, no hooks, every token and patch in plain loops.

Only weights are taken from the model, and VIC and the plan from the reference ops (tested on their own).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from slow_llava import OTHERS, Turn, drop, rms_norm
from tiny_qwen import IMAGE, MERGE, VIDEO, Media, Sample
from torch import Tensor

REFERENCE = torch.ops.vitcop_reference


@dataclass
class Token:
    hidden: Tensor  # [C]
    place: tuple[int, int, int]  # time, row, column
    column: int  # in the conversation
    turn: int
    segment: int = -1  # frame of a picture or film of the turn; -1: text
    spot: tuple[float, float] = (0.0, 0.0)  # (row, column)/grid
    given: int = -1  # picture or film of the turn
    visual: int = -1  # among the visual tokens of the turn
    feature: Tensor = field(default_factory=lambda: torch.empty(0))
    saliency: float = 0.0
    added: list[Tensor] = field(default_factory=list)  # after each of the first decoder layers


def logits(
    model: Any,
    method: Any,
    turns: list[Sample],
    answer: list[int],
    kept: Any = None,
    states: list[dict[int, Tensor]] | None = None,
    per_image: bool = False,
) -> Tensor:
    """[columns, vocabulary] logits of the whole conversation followed by `answer`; NaN where a token was pruned.

    The other arguments are those of `slow_llava.logits`.
    """
    decoder, config = model.model.language_model, model.config.text_config
    num_layers = config.num_hidden_layers
    shallow, deep = method.layers(num_layers)
    tokens: list[Token] = []
    for number, turn in enumerate(turns):
        tokens += embed(model, turn, number, tokens)
    pools: dict[tuple[int, int], int] = {}  # tokens that share a budget: (turn, image), all of a turn's images are 0
    for token in tokens:
        if token.segment >= 0:
            token.given = token.given if per_image else 0
            pools[token.turn, token.given] = pools.get((token.turn, token.given), 0) + 1
    ends = [max(t.column for t in tokens if t.turn == number) for number in range(len(turns))]
    tokens += embed(model, Sample(answer, []), len(turns), tokens)
    columns = len(tokens)

    counts = {pool: method.counts(num_layers, total) for pool, total in pools.items()}
    for pool, count in counts.items():  # Stage I
        visual = [t for t in tokens if (t.turn, t.given) == pool]
        best = sorted(visual, key=lambda t: (-t.saliency, t.visual))[: count[0]]
        if kept is not None:
            best = [t for t in visual if t.visual in kept[0]]
        tokens = drop(tokens, visual, best)  # type: ignore[arg-type, assignment]

    previous: dict[int, Tensor] = {}  # what the layer before got
    for index, layer in enumerate(decoder.layers):
        stage, ranked = 1 if index == shallow else 2, []
        for pool, count in counts.items() if index in (shallow, deep) else ():
            visual = [t for t in tokens if (t.turn, t.given) == pool]
            if count[stage] < len(visual):
                scores = score(model, method, index, tokens, visual, ends[pool[0]], previous)
                ranked.append((pool, count, visual, scores))
        for pool, count, visual, scores in ranked:
            if index == shallow and method.saliency != "key_norm_only":
                tokens = merge(method, num_layers, pools[pool], count[1], tokens, visual, scores, index)
            else:
                order = sorted(range(len(visual)), key=lambda i: (scores[i], i))[: count[stage]]
                best = [visual[i] for i in order]
                if kept is not None:
                    best = [t for t in visual if t.visual in kept[stage]]
                tokens = drop(tokens, visual, best)  # type: ignore[arg-type, assignment]
        previous = {id(t): t.hidden for t in tokens}
        if states is not None and not index:
            states.append({t.column: t.hidden for t in tokens})
        run_layer(config, layer, tokens)
        if states is not None:
            states.append({t.column: t.hidden for t in tokens})
        for token in tokens:
            if index < len(token.added):
                token.hidden = token.hidden + token.added[index]

    if states is not None:
        states[-1] = {t.column: rms_norm(decoder.norm, t.hidden) for t in tokens}
    out = torch.full((columns, config.vocab_size), math.nan)
    for token in tokens:
        out[token.column] = (model.lm_head.weight @ rms_norm(decoder.norm, token.hidden)).float()
    return out


# -- the prompt ----------------------------------------------------------------------------------------------------


def embed(model: Any, turn: Sample, number: int, before: list[Token]) -> list[Token]:
    """Tokens of one turn: text counts on in all of time, row and column, a picture spans its side of each."""
    table = model.model.get_input_embeddings().weight
    films: dict[int, list[list[Token]]] = {IMAGE: [], VIDEO: []}  # frames that wait for their placeholders
    separate = "Qwen3" in type(model).__name__  # each frame of a film stands on its own in the prompt
    for media in turn.media:
        frames = look(model, media)
        kind = IMAGE if media.kind == "image" else VIDEO
        films[kind] += frames if separate else [[t for frame in frames for t in frame]]
    tokens: list[Token] = []
    waiting: list[Token] = []
    segments, given, rest = 0, -1, 0  # rest: frames of the latest picture or film that are still to come
    kinds = {IMAGE: [m for m in turn.media if m.kind == "image"], VIDEO: [m for m in turn.media if m.kind == "video"]}
    following = max((max(t.place) for t in before), default=-1) + 1
    for token_id in turn.ids:
        column = len(before) + len(tokens)
        if token_id in films and not waiting:
            waiting = films[token_id].pop(0)
            if not rest:
                given, rest = given + 1, kinds[token_id].pop(0).grid[0] if separate else 1
            rest -= 1
            start, first = following, segments
            for token in waiting:
                token.place = (token.place[0] * (not separate) + start, token.place[1] + start, token.place[2] + start)
                token.segment = first + token.segment * (not separate)
                following, segments = max(following, max(token.place) + 1), max(segments, token.segment + 1)
        if token_id in films:
            token = waiting.pop(0)
            token.column, token.turn, token.given = column, number, given
            token.visual = sum(t.segment >= 0 for t in tokens)
        else:
            token = Token(table[token_id], (following,) * 3, column, number)
            following += 1
        tokens.append(token)
    return tokens


def look(model: Any, media: Media) -> list[list[Token]]:
    """The tokens of each frame, as the vision tower sees them: patch by patch, in raster order within squares."""
    tower = model.model.visual
    frames, rows, cols = media.grid
    size = rows * cols * MERGE**2
    seen = []
    for frame in range(frames):
        where = []  # (row, column) of each patch
        for square in range(rows * cols):
            for inner in range(MERGE**2):
                where.append((square // cols * MERGE + inner // MERGE, square % cols * MERGE + inner % MERGE))
        pixels = media.pixels[frame * size : (frame + 1) * size].to(tower.patch_embed.proj.weight.dtype)
        patches, saliency, features, added = see(tower, pixels, where, rows * MERGE, cols * MERGE)
        tokens = []
        for square in range(rows * cols):
            of = slice(square * MERGE**2, (square + 1) * MERGE**2)
            row, col = divmod(square, cols)
            token = Token(tower.merger(patches[of])[0], (frame, row, col), 0, 0, frame, (row / rows, col / cols))
            token.saliency = float(saliency[of].mean())
            token.feature = features[of].float().mean(0)
            token.added = [merger(states[of])[0] for merger, states in added]
            tokens.append(token)
        seen.append(tokens)
    return seen


def see(tower: Any, pixels: Tensor, where: list[tuple[int, int]], height: int, width: int) -> Any:
    """One frame through the tower: patches, the attention they receive and their keys, and states for later layers."""
    kernel = tower.patch_embed.proj
    x = torch.stack([kernel.weight.flatten(1) @ patch for patch in pixels])
    if kernel.bias is not None:
        x = x + kernel.bias
    if hasattr(tower, "pos_embed"):
        x = x + torch.stack([learned_position(tower, row, col, height, width) for row, col in where])
    windows = getattr(tower.config, "window_size", None)
    chosen = max(tower.config.fullatt_block_indexes) if windows else len(tower.blocks) - 1
    added = []
    for number, block in enumerate(tower.blocks):
        full = windows is None or number in tower.config.fullatt_block_indexes
        side = 1 << 30 if full else windows // tower.config.patch_size  # of a window, in patches
        close: dict[tuple[int, int], list[int]] = {}  # patches by their window
        for i, (row, col) in enumerate(where):
            close.setdefault((row // side, col // side), []).append(i)
        heads = block.attn.num_heads
        query, key, value = block.attn.qkv(block.norm1(x)).view(len(x), 3, heads, -1).unbind(1)
        if number == chosen:
            features = key.flatten(1)
            saliency = torch.zeros(len(x))
        query, key = (torch.stack([turn_patch(v, *at) for v, at in zip(q, where, strict=True)]) for q in (query, key))
        results = []
        for i, (row, col) in enumerate(where):
            near = close[row // side, col // side]
            dots = (key[near] * query[i]).sum(-1) / math.sqrt(query.shape[-1])  # [near, heads]
            share = dots.float().T.contiguous().softmax(-1).T
            results.append(block.attn.proj((share.to(x.dtype)[..., None] * value[near]).sum(0).flatten()))
            if number == chosen:
                saliency[near] += share.sum(1) / len(where)
        x = x + torch.stack(results)
        x = x + block.mlp(block.norm2(x))
        for merger, index in zip(
            getattr(tower, "deepstack_merger_list", []), getattr(tower, "deepstack_visual_indexes", []), strict=True
        ):
            if index == number:
                added.append((merger, x))
    return x, saliency, features, added


def learned_position(tower: Any, row: int, col: int, height: int, width: int) -> Tensor:
    """Bilinear interpolation of a square table whose corners are the corners of the picture."""
    side = math.isqrt(tower.pos_embed.num_embeddings)
    table = tower.pos_embed.weight.view(side, side, -1)
    y, x = row * (side - 1) / (height - 1), col * (side - 1) / (width - 1)
    total = torch.zeros_like(table[0, 0])
    for r in range(side):
        for c in range(side):
            total = total + max(0.0, 1 - abs(y - r)) * max(0.0, 1 - abs(x - c)) * table[r, c]
    return total


def turn_patch(heads: Tensor, row: int, col: int) -> Tensor:
    """Rotary embedding of a patch's heads `[H, d]`: a quarter of the channels by row, a quarter by column, twice."""
    quarter = heads.shape[-1] // 4
    speed = 10000.0 ** (-torch.arange(quarter) / quarter)
    return turn_by(heads, torch.cat([row * speed, col * speed])).to(heads.dtype)


def turn_by(vector: Tensor, angle: Tensor) -> Tensor:
    a, b = vector.float().chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


# -- the decoder ---------------------------------------------------------------------------------------------------


def rotate(config: Any, heads: Tensor, place: tuple[int, int, int]) -> Tensor:
    """RoPE of a token's heads `[H, d]`; each pair of channels follows time, row or column."""
    half = heads.shape[-1] // 2
    rope = getattr(config, "rope_parameters", None) or config.rope_scaling
    theta = getattr(config, "rope_theta", None) or rope["rope_theta"]
    time, height, width = rope["mrope_section"]
    angles = []
    for pair in range(half):
        if "qwen3" in config.model_type:
            axis = pair % 3 if pair < 3 * (height if pair % 3 == 1 else width) else 0
        else:
            axis = 0 if pair < time else 1 if pair < time + height else 2
        angles.append(place[axis] / theta ** (pair / half))
    angle = torch.tensor(angles)
    cos, sin = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    a, b = heads[:, :half], heads[:, half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def project(config: Any, layer: Any, hidden: Tensor, name: str, place: tuple[int, int, int] | None) -> Tensor:
    """[heads, d] query, key or value of one token."""
    attention = layer.self_attn
    heads = getattr(attention, f"{name}_proj")(rms_norm(layer.input_layernorm, hidden)).view(-1, attention.head_dim)
    if hasattr(attention, f"{name}_norm"):
        heads = torch.stack([rms_norm(getattr(attention, f"{name}_norm"), head) for head in heads])
    return heads if place is None else rotate(config, heads, place)


def run_layer(config: Any, layer: Any, tokens: list[Token]) -> None:
    repeat = config.num_attention_heads // config.num_key_value_heads
    keys = torch.stack([project(config, layer, t.hidden, "k", t.place) for t in tokens])
    values = torch.stack([project(config, layer, t.hidden, "v", None) for t in tokens])
    results = []
    for number, token in enumerate(tokens):
        query = project(config, layer, token.hidden, "q", token.place)
        heads = []
        for head in range(config.num_attention_heads):
            k, v = keys[: number + 1, head // repeat], values[: number + 1, head // repeat]
            heads.append((k @ query[head] / math.sqrt(len(query[head]))).float().softmax(0).to(v.dtype) @ v)
        hidden = token.hidden + layer.self_attn.o_proj(torch.cat(heads))
        results.append(hidden + layer.mlp(rms_norm(layer.post_attention_layernorm, hidden)))
    for token, hidden in zip(tokens, results, strict=True):
        token.hidden = hidden


def score(
    model: Any, method: Any, index: int, tokens: list[Token], visual: list[Token], end: int, previous: dict[int, Tensor]
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
        query = project(config, layer, hidden[id(last)], "q", last.place)
        keys = torch.stack([project(config, layer, hidden[id(t)], "k", t.place) for t in seen])
        received = torch.zeros(len(seen))
        for head in range(config.num_attention_heads):
            received += (keys[:, head // repeat] @ query[head] / math.sqrt(len(query[head]))).float().softmax(0)
        by_token = {id(t): float(r) for t, r in zip(seen, received, strict=True)}
        return [-by_token[id(t)] for t in visual]
    norms = []
    for token in visual:
        key = project(config, layer, hidden[id(token)], "k", None).float()
        norms.append(float(key.norm() if method.option("heads") == "l2" else key.mean(0).norm()))
    return norms


def merge(
    method: Any,
    num_layers: int,
    total: int,
    budget: int,
    tokens: list[Token],
    visual: list[Token],
    scores: list[float],
    index: int,
) -> list[Token]:
    """Stage II: each frame clustered on its own, then one plan for the sample."""
    alpha = method.center_ratio
    if method.merged_share is not None:
        margin = 1e-9 if method.semantics == "released" else -1e-9
        alpha = (max(1, round(method.merged_share * budget)) + margin) / len(visual)
    elif alpha is None:
        alpha = 0.09 + 0.27 * method.schedule(num_layers, total).retention
    labels, clusters = [], 0
    for segment in sorted({t.segment for t in visual}):
        members = [t for t in visual if t.segment == segment]
        features = torch.stack([t.feature if method.option("features") == "clip_key" else t.hidden for t in members])
        spots = torch.tensor([t.spot for t in members])
        centers = alpha * len(members)
        centers = max(1, int(centers)) if method.semantics == "released" else math.ceil(centers)
        found = REFERENCE.vic_cluster(features, spots, method.d_c, method.tau, centers, semantics=method.semantics)
        labels += [label + clusters if label >= 0 else -1 for label in found[0].tolist()]
        clusters += centers
    plan = REFERENCE.plan_tokens(
        torch.tensor(labels), torch.tensor(scores), clusters, budget, quota=method.option("quota")
    )
    perm, offsets, anchors, merged = (p.tolist() for p in plan)
    new: dict[int, tuple[Tensor, list[Tensor]]] = {}
    for segment, anchor in enumerate(anchors):
        members = [visual[i] for i in perm[offsets[segment] : offsets[segment + 1]]]
        twice = merged[segment] and method.option("merge") == "anchor_plus_mean"

        def mean(parts: list[Tensor], own: Tensor, twice: bool = twice) -> Tensor:
            together = torch.stack(parts).double().mean(0)
            return (own.double() + together if twice else together).to(own.dtype)

        token = visual[anchor]
        later = range(index, len(token.added))
        added = {layer: mean([t.added[layer] for t in members], token.added[layer]) for layer in later}
        new[id(token)] = (
            mean([t.hidden for t in members], token.hidden),
            [added.get(layer, own) for layer, own in enumerate(token.added)],
        )
    tokens = drop(tokens, visual, [visual[a] for a in anchors])  # type: ignore[arg-type, assignment]
    for token in tokens:
        token.hidden, token.added = new.get(id(token), (token.hidden, token.added))
    return tokens


def of_turns(model: Any, method: Any, turns: list[Turn], *rest: Any) -> Tensor:
    return logits(model, method, [Sample(turn.ids, turn.pixels or []) for turn in turns], *rest)


OTHERS |= {"qwen2_5_vl": of_turns, "qwen3_vl": of_turns}
