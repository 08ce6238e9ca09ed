"""PyramidDrop (Xing et al., CVPR 2025): a geometric series of cuts, each by the layer's own attention to come."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Choice, Context, Program, Stage
from .schedule import Budgeted, kept_whole, layers_for, spread

PUBLISHED = (8, 16, 24)
MATCHED = (2, 10, 20)  # where other papers put its cuts, to reach budgets as low as FastV's


@dataclass
class PyramidDrop(Budgeted):
    """At each cut, the visual tokens to which the prompt's last token would pay most attention in that layer stay: with
    the layer's own norm, W_q, W_k and RoPE on the hidden states that enter it. Position ids are numbered anew at
    each cut, and decoding goes on from the length that is left.

    `PyramidDrop()` is the published setting: layers 8, 16, 24 keep `int(m * ratio^s)`, 288, 144 and 72 of 576 tokens.

    Args:
        retain, retention: the average over layers, at layers 2, 10, 20: 312/156/78 of 576 tokens for T = 192,
            184/92/46 for 128, 56/28/14 for 64 (not published by its authors).
        ratio: of the tokens after a cut and before it; with a budget, only from the second cut on.
        layers: whose inputs are cut. Without them, the layers above, which move with the depth of the decoder.

    Raises:
        ValueError: a budget that these layers and this ratio cannot average.
    """

    ratio: float = 0.5
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: expected a share in (0, 1], got {self.ratio!r}")

    def given_otherwise(self) -> bool:
        return not self.budgeted  # by the ratio alone

    def counts(self, num_layers: int, total: int) -> list[int]:
        """Visual tokens after each cut, for a sample that has `total` of them."""
        layers = self._layers(num_layers)[0]
        if not self.budgeted:
            return [max(1, int(total * self.ratio**stage)) for stage in range(1, len(layers) + 1)]
        weights = spread(layers, num_layers, [self.ratio**stage for stage in range(len(layers))])
        low, high = ((layers[0] * total + n * sum(weights)) / num_layers for n in (1, total))
        if self.keeps_all(total, high):
            return [total] * len(layers)
        first = (num_layers * self.average(total) - layers[0] * total) / sum(weights)
        if not 1 <= first <= total:
            raise self.infeasible(total, low, high)
        return [max(1, int(first * self.ratio**stage + 1e-9)) for stage in range(len(layers))]

    def program(self, num_layers: int) -> Program:
        layers, notes = self._layers(num_layers)
        stages = [Stage(f"pyramiddrop {number}", layer, _select) for number, layer in enumerate(layers, start=1)]
        counts = functools.partial(self.counts, num_layers)
        return Program(stages, counts, "renumber", notes, functools.partial(kept_whole, self, counts))

    def _layers(self, num_layers: int) -> tuple[list[int], list[str]]:
        return layers_for(MATCHED if self.budgeted else PUBLISHED, self.layers, num_layers)


def _select(ctx: Context) -> Choice:
    return Choice(ctx.attention("layer"), ctx.budget, largest=True)
