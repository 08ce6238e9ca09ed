"""SparseVLM (Zhang et al., ICML 2025, code v1.5): text that is close to the image rates, and what goes is recycled."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import vitcop_kernels as ops

from .base import Context, Plan, Program, Stage
from .schedule import Budgeted, kept_whole, layers_for, segments, spread

LAYERS = (3, 7, 16)  # its code prunes what comes out of layers 2, 6 and 15
PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}


@dataclass
class SparseVLM(Budgeted):
    """At each cut the `kept` visual tokens stay to which the raters paid most attention in the layer before, mean over
    heads and raters; of the D others, the best `int(.3 D) + 1 = n` are clustered by density peaks (`vic_cluster`) into
    `int(n/10) + 1` means, appended after those that stay by falling density times distance. Raters are the tokens of
    the text after the image whose share of a softmax over that text, mean over the visual tokens, of the dot
    products of input embeddings, exceeds the mean (all of them, if none does). Position ids are numbered anew at
    each cut; its code numbers the answer's tokens by each layer's own length, here they go on from the length left.

    Args:
        retain, retention: 192, 128 and 64 of 576 tokens are the published settings, which leave 309/204/113,
            312/117/39 and 82/32/18 tokens after recycling. Their true averages over 32 layers are 206.5, 145.4 and
            82.3. Any other budget is met by its true average, halving the tokens from cut to cut.
        kept: tokens that stay at each cut, not counting the means.
        layers: whose inputs are pruned; None: 3, 7 and 16, which move with the depth of the decoder.
        recycle: False drops the means, and the budget formula counts without them.

    Raises:
        ValueError: a budget that these layers cannot average.
    """

    kept: Sequence[int] | None = None
    layers: Sequence[int] | None = None
    recycle: bool = True

    instead = "kept"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept is not None and any(isinstance(k, bool) or k < 1 for k in self.kept):
            raise ValueError(f"kept: expected numbers of tokens, at least 1, got {self.kept!r}")

    def given_otherwise(self) -> bool:
        return self.kept is not None

    def cuts(self, num_layers: int, total: int) -> list[tuple[int, int]]:
        """(tokens that stay, means) after each cut, for a sample of `total` visual tokens."""
        layers = layers_for(LAYERS, self.layers, num_layers)[0]
        wanted = self.kept
        if wanted is None and total == 576 and self.layers is None:
            wanted = next((k for t, k in PUBLISHED.items() if abs(t - self.average(total)) < 0.05), None)
        cuts, before = [], total
        for goal in self._goals(num_layers, total, layers) if wanted is None else wanted:
            stays = goal if wanted is not None else self._largest(before, goal)
            cuts.append((before, 0) if stays >= before else (stays, self.means(before - stays)))
            before = sum(cuts[-1])
        if len(cuts) != len(layers):
            raise ValueError(f"kept: expected tokens for each of the layers {layers}, got {wanted}")
        return cuts

    def means(self, pruned: int) -> int:
        """Means that `pruned` tokens are recycled into."""
        return self._recycled(pruned) // 10 + 1 if self.recycle else 0

    def program(self, num_layers: int) -> Program:
        layers, notes = layers_for(LAYERS, self.layers, num_layers)
        cuts = functools.cache(functools.partial(self.cuts, num_layers))
        stages = [
            Stage(f"sparsevlm {number + 1}", layer, functools.partial(self._select, number, cuts))
            for number, layer in enumerate(layers)
        ]

        def counts(total: int) -> list[int]:
            return [sum(cut) for cut in cuts(total)]

        return Program(stages, counts, "renumber", notes, functools.partial(kept_whole, self, counts))

    def _goals(self, num_layers: int, total: int, layers: Sequence[int]) -> list[int]:
        """Tokens after each cut, means included, that the average asks for."""
        shares = [0.5**cut for cut in range(len(layers))]
        weights = spread(layers, num_layers, shares)
        low, high = ((layers[0] * total + n * sum(weights)) / num_layers for n in (8, total))
        if self.keeps_all(total, high):
            return [total] * len(layers)
        first = (num_layers * self.average(total) - layers[0] * total) / sum(weights)
        goals = [int(first * share + 1e-9) for share in shares]
        if first > total or goals[-1] < 2:  # one token and a mean
            raise self.infeasible(total, low, high)
        return goals

    def _largest(self, before: int, goal: int) -> int:
        """How many of `before` tokens may stay for `goal` with the means; at least one."""
        if goal >= before:
            return before
        return next((k for k in range(goal, 0, -1) if k + self.means(before - k) <= goal), 1)

    @staticmethod
    def _recycled(pruned: int) -> int:
        return int(pruned * 0.3) + 1

    def _select(self, number: int, cuts: Callable[[int], list[tuple[int, int]]], ctx: Context) -> Plan:
        stays, means = cuts(ctx.total)[number]
        scores = ctx.text_attention(raters(ctx), "previous")  # [G, V]
        best = ops.select_tokens(scores, stays, largest=True)
        if not means:
            return Plan(best)
        others = scores.scatter(1, best, -math.inf)
        recycled = ops.select_tokens(others, self._recycled(ctx.count - stays), largest=True)  # [G, n]
        width = ctx.hidden.shape[-1]
        labels, centers, _, rho, delta = ops.vic_cluster(
            ctx.hidden.gather(1, recycled[..., None].expand(-1, -1, width)), None, 1.0, math.inf, means,
            dist_scale=width**-0.5, density="knn", knn=means, include_self=True, assign="nearest", root_delta="max",
        )  # fmt: skip
        order = (rho * delta).gather(1, centers).argsort(dim=1, descending=True, stable=True)  # [G, means]
        place = stays + order.argsort(dim=1)  # of each cluster among the outputs
        outputs = torch.arange(ctx.budget, device=best.device).expand(best.shape[0], -1)
        segment = torch.full_like(scores, ctx.budget, dtype=torch.int64).scatter(1, best, outputs[:, :stays])
        perm, offsets = segments(segment.scatter(1, recycled, place.gather(1, labels)), ctx.budget)
        anchors = torch.cat([best, recycled.gather(1, centers.gather(1, order))], dim=1)
        behind = best.new_full((best.shape[0], means), 3 * ctx.count - 2)  # the last token
        return Plan(anchors, perm, offsets, outputs >= stays, places=torch.cat([3 * best, behind], dim=1))


def raters(ctx: Context) -> Tensor:
    """[G, W] bool: the text tokens after the image that are closest to it."""
    text, valid = ctx.text_embeddings.float(), ctx.text_valid
    similarity = ctx.embeddings.float() @ text.mT  # [G, m, W]
    share = similarity.masked_fill(~valid[:, None], -math.inf).softmax(-1).mean(1)
    chosen = valid & (share > share.sum(1, keepdim=True) / valid.sum(1, keepdim=True))
    return torch.where(chosen.any(1, keepdim=True), chosen, valid)
