"""FastV (Chen et al., ECCV 2024): one cut, by the attention of the prompt's last token in the layer before."""

import functools
from dataclasses import dataclass

from .base import Choice, Context, Program, Stage
from .schedule import Budgeted, layers_for


@dataclass
class FastV(Budgeted):
    """The input of layer K keeps the `kept` visual tokens to which the prompt's last token pays most attention in layer
    K-1, mean over heads. Order and position ids stay.

    That is FastV's code; its paper averages the rows of all tokens. Only that one row is computed, so the
    model's own attention keeps its backend, and any batch will do.

    Args:
        retain, retention: the average over layers; then `kept = R = (L*T - K*m)/(L - K)`, rounded: 166, 98 and 30 of
            576 tokens for T = 192, 128 and 64 with L = 32.
        kept: R itself.
        layer: K. The paper's setting is 2; its demos use 3.

    Raises:
        ValueError: budgets below `K*m/L`, which the layers before K use up alone.
    """

    kept: int | None = None
    layer: int = 2

    instead = "kept"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept is not None and (isinstance(self.kept, bool) or self.kept < 1):
            raise ValueError(f"kept: expected a number of tokens, at least 1, got {self.kept!r}")

    def given_otherwise(self) -> bool:
        return self.kept is not None

    def counts(self, num_layers: int, total: int) -> list[int]:
        """Visual tokens from layer K on, for a sample that has `total` of them."""
        if self.kept is not None:
            return [min(self.kept, total)]
        left = num_layers - self.layer
        kept = round((num_layers * self.average(total) - self.layer * total) / left)
        if kept < 1:
            raise self.infeasible(total, (self.layer * total + left) / num_layers, total)
        return [kept]

    def program(self, num_layers: int) -> Program:
        layers, _ = layers_for((), (self.layer,), num_layers)
        return Program([Stage("fastv", layers[0], _select)], functools.partial(self.counts, num_layers), "original")


def _select(ctx: Context) -> Choice:
    return Choice(ctx.attention("previous"), ctx.budget, largest=True)
