"""The published algorithms from scratch: one prompt, no cache, no batch, every token and every choice in plain loops.

As slow_llava.py, whose decoder is used: only weights are taken from the model.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from slow_llava import REFERENCE, Token, Turn, embed, project, rms_norm, run_layer
from torch import Tensor


@dataclass
class State:
    """The sequence in front of a layer."""

    model: Any
    index: int
    tokens: list[Token]
    last: Token  # of the prompt
    before: dict[int, Tensor]  # hidden states that the layer before got
    inputs: dict[int, Tensor]  # the decoder's input, pruned tokens included
    pixels: Tensor | None
    every: list[Token]  # all tokens of the prompt, pruned or not
    images: list[int]  # those that are chosen from

    @property
    def visual(self) -> list[Token]:
        return [t for t in self.tokens if t.image in self.images]


@dataclass
class Outcome:
    """What a stage leaves: tokens as they are, and new ones in front of an image or behind all."""

    kept: list[Token]
    front: dict[int, Token] = field(default_factory=dict)  # by image
    back: list[Token] = field(default_factory=list)


Choice = Callable[[State], Outcome]


def logits(
    model: Any, method: Any, choices: list[Choice], turn: Turn, answer: list[int], per_image: bool = False
) -> Tensor:
    """[len(answer), vocabulary] logits that each token of `answer` is drawn from. `per_image`: choose from one image
    after the other."""
    base = model.model
    decoder, config = base.language_model, model.config.text_config
    program = method.program(config.num_hidden_layers)
    with torch.no_grad():
        prompt = embed(model, turn, 0, start=0)
        images = sorted({t.image for t in prompt if t.image >= 0})
        given = sorted({t.given for t in prompt if t.image >= 0})
        pools = [[i for i in images if any((t.image, t.given) == (i, g) for t in prompt)] for g in given]
        pools = pools if per_image or not images else [images]
        totals = [sum(t.image in pool for t in prompt) for pool in pools]
        removed = sum(total - program.counts(total)[-1] for total in totals)
        removed = 0 if program.positions == "original" else removed
        tokens = list(prompt)
        for place, word in enumerate(answer, start=len(prompt)):
            tokens.append(Token(base.get_input_embeddings().weight[word], place - removed, place, turn=1))
        inputs = {id(t): t.hidden for t in prompt}
        before: dict[int, Tensor] = {}
        for index, layer in enumerate(decoder.layers):
            for stage, choice in zip(program.stages, choices, strict=True):
                if stage.layer == index and pools:
                    state = State(model, index, tokens, prompt[-1], before, inputs, turn.pixels, prompt, [])
                    outcomes = [choice(replace(state, images=pool)) for pool in pools]
                    for pool, outcome in zip(pools, outcomes, strict=True):
                        tokens = assemble(tokens, outcome, pool)
                    if program.positions == "renumber" or (program.positions == "compact" and index == 0):
                        for place, token in enumerate(t for t in tokens if t.turn == 0):
                            token.position = place
            before = {id(t): t.hidden for t in tokens}
            run_layer(config, layer, tokens)
        rows = [(model.lm_head.weight @ rms_norm(decoder.norm, t.hidden)).float() for t in tokens]
    return torch.stack(rows[-len(answer) - 1 : -1])


def assemble(tokens: list[Token], outcome: Outcome, images: list[int]) -> list[Token]:
    kept = {id(t) for t in outcome.kept}
    last = max(place for place, t in enumerate(tokens) if t.image in images)
    new: list[Token] = []
    seen = set()
    for place, token in enumerate(tokens):
        if token.image in outcome.front and token.image not in seen:
            new.append(outcome.front[token.image])
        seen.add(token.image)
        if token.image not in images or id(token) in kept:
            new.append(token)
        if place == last:
            new += outcome.back
    return new


def received(state: State, index: int, hidden: dict[int, Tensor], rows: list[Token]) -> list[float]:
    """Softmax attention that `rows` pay each visual token in layer `index`, mean over heads and rows."""
    config, layer = state.model.config.text_config, state.model.model.language_model.layers[index]
    repeat = config.num_attention_heads // config.num_key_value_heads
    keys = [project(config, layer, hidden[id(t)], "k_proj", t.position) for t in state.tokens]
    total = torch.zeros(len(state.tokens))
    for row in rows:
        place = next(i for i, t in enumerate(state.tokens) if t is row)
        query = project(config, layer, hidden[id(row)], "q_proj", row.position)
        for head in range(config.num_attention_heads):
            dots = [float(keys[i][head // repeat] @ query[head]) for i in range(place + 1)]
            scores = [dot / math.sqrt(query.shape[1]) for dot in dots]
            total[: place + 1] += torch.tensor(scores).softmax(0) / config.num_attention_heads / len(rows)
    by_token = {id(t): float(value) for t, value in zip(state.tokens, total, strict=True)}
    return [by_token[id(t)] for t in state.visual]


def best(tokens: list[Token], scores: list[float], count: int) -> list[Token]:
    """The highest scores, in the order of the sequence."""
    chosen = sorted(range(len(tokens)), key=lambda i: (-scores[i], i))[:count]
    return [tokens[i] for i in sorted(chosen)]


def fastv(kept: int) -> list[Choice]:
    def cut(state: State) -> Outcome:
        return Outcome(best(state.visual, received(state, state.index - 1, state.before, [state.last]), kept))

    return [cut]


def pyramiddrop(*counts: int) -> list[Choice]:
    def cut(state: State, kept: int) -> Outcome:
        hidden = {id(t): t.hidden for t in state.tokens}
        return Outcome(best(state.visual, received(state, state.index, hidden, [state.last]), kept))

    return [lambda state, kept=kept: cut(state, kept) for kept in counts]  # type: ignore[misc]


def raters(state: State) -> list[Token]:
    images = [t for t in state.every if t.image in state.images]
    last = max(t.column for t in state.every if t.image >= 0)
    text = [t for t in state.every if t.column > last]
    share = torch.zeros(len(text))
    for image in images:
        dots = [float(state.inputs[id(image)] @ state.inputs[id(t)]) for t in text]
        share += torch.tensor(dots).softmax(0) / len(images)
    chosen = [t for t, s in zip(text, share.tolist(), strict=True) if s > float(share.mean())]
    return chosen or text


def sparsevlm(*kept: int) -> list[Choice]:
    def cut(state: State, count: int) -> Outcome:
        visual = state.visual
        scores = received(state, state.index - 1, state.before, raters(state))
        stay = best(visual, scores, count)
        gone = [i for i, t in enumerate(visual) if all(t is not s for s in stay)]
        gone = sorted(gone, key=lambda i: (-scores[i], i))[: int(len(gone) * 0.3) + 1]
        recycled = [visual[i] for i in sorted(gone)]
        back = []
        for members in density_peaks([t.hidden for t in recycled], int(len(recycled) / 10) + 1):
            mean = torch.stack([recycled[i].hidden for i in members]).mean(0)
            back.append(Token(mean, 0, -1, 0, image=recycled[members[0]].image, visual=-2))
        return Outcome(stay, back=back)

    return [lambda state, count=count: cut(state, count) for count in kept]  # type: ignore[misc]


def density_peaks(points: list[Tensor], clusters: int) -> list[list[int]]:
    """Members of each cluster, by falling density times distance: k nearest neighbours, k = clusters."""
    n, scale = len(points), len(points[0]) ** -0.5
    distance = [[float((a - b).norm()) * scale for b in points] for a in points]
    density = [math.exp(-sum(d * d for d in sorted(row)[:clusters]) / clusters) for row in distance]
    most = max(max(row) for row in distance)
    gap = [min([distance[i][j] for j in range(n) if (-density[j], j) < (-density[i], i)] + [most]) for i in range(n)]
    centers = sorted(range(n), key=lambda i: (-density[i] * gap[i], i))[:clusters]
    members: list[list[int]] = [[c] for c in centers]
    for i in range(n):
        if i not in centers:
            members[min(range(clusters), key=lambda c: distance[i][centers[c]])].append(i)
    return members


def visionzip(dominant: int, contextual: int) -> list[Choice]:
    def zipped(state: State) -> Outcome:
        model, visual = state.model.model, state.visual
        special = list(state.images) if state.model.config.model_type == "llava" else []  # images with a [CLS]
        keys = {id(t): t.feature.view(4, -1).mean(0) for t in visual}  # every tower here has four heads
        patches = [t for t in visual if t.state is not None]
        stay = best(patches, [t.saliency for t in patches], dominant - len(special))
        rest = [t for t in patches if all(t is not s for s in stay)]
        targets = rest[:: len(rest) // contextual][:contextual]
        joined: dict[int, list[Token]] = {id(t): [] for t in targets}
        for token in rest:
            if all(token is not t for t in targets):
                cosine = [float(torch.cosine_similarity(keys[id(token)], keys[id(t)], dim=0)) for t in targets]
                joined[id(targets[cosine.index(max(cosine))])].append(token)
        back = []
        for target in targets:
            mean: Any = target.state
            if joined[id(target)]:
                mean = mean + torch.stack([t.state for t in joined[id(target)] if t.state is not None]).mean(0)
            back.append(Token(model.multi_modal_projector(mean[None])[0], 0, -1, 0, image=target.image))
        front = {}
        for image in special:
            assert state.pixels is not None
            states = model.vision_tower(state.pixels[image][None], output_hidden_states=True).hidden_states[-2]
            front[image] = Token(model.multi_modal_projector(states[:, :1])[0, 0], 0, -1, 0, image=image)
        return Outcome(stay, front, back)

    return [zipped]


def divprune(count: int) -> list[Choice]:
    def spread(state: State) -> Outcome:
        visual = state.visual
        n = len(visual)
        away = [[1 - float(torch.cosine_similarity(a.hidden, b.hidden, dim=0)) for b in visual] for a in visual]
        chosen = [max(range(n), key=lambda i: (min(away[i][j] for j in range(n) if j != i), -i))]
        while len(chosen) < count:
            others = [i for i in range(n) if i not in chosen]
            chosen.append(max(others, key=lambda i: (min(away[i][j] for j in chosen), -i)))
        return Outcome([visual[i] for i in sorted(chosen)])

    return [spread]


def vision_only(method: Any) -> list[Choice]:
    def halved(state: State) -> Outcome:
        visual = state.visual
        (budget,) = method.program(1).counts(len(visual))
        if budget >= len(visual):
            return Outcome(visual)
        left = min(len(visual), max(int(method.stage1_ratio * len(visual)), 2 * budget))
        clusters = max(1, round(method.merged_share * budget))
        received = [-math.inf if math.isnan(t.saliency) else t.saliency for t in visual]  # line breaks go first
        visual = best(visual, received, left)

        labels: list[int] = []
        for image in sorted({t.image for t in visual}):
            members = [t for t in visual if t.image == image]
            features = torch.stack([t.feature for t in members])
            places = torch.tensor([t.place for t in members], dtype=torch.float32)
            centers = max(1, len(members) * clusters // left)
            found = REFERENCE.vic_cluster(features, places, method.d_c, method.tau, centers)[0].tolist()
            labels += [label + len(labels) for label in found]
        ordered = sorted(visual, key=lambda t: t.image)
        label_of = {id(t): label for t, label in zip(ordered, labels, strict=True)}

        plan = REFERENCE.plan_tokens(
            torch.tensor([label_of[id(t)] for t in visual]), torch.tensor([-t.saliency for t in visual]), left, budget
        )
        perm, offsets, anchors, _ = (p.tolist() for p in plan)
        bounds = itertools.pairwise(offsets)
        means = [torch.stack([visual[i].hidden for i in perm[a:b]]).double().mean(0) for a, b in bounds]
        for anchor, mean in zip(anchors, means, strict=True):
            visual[anchor].hidden = mean.to(visual[anchor].hidden.dtype)
        return Outcome([visual[a] for a in anchors])

    return [halved]


def listed(*places: list[int]) -> list[Choice]:
    """Keep the tokens at these places of those that are left."""
    return [lambda state, chosen=chosen: Outcome([state.visual[i] for i in chosen]) for chosen in places]  # type: ignore[misc]
