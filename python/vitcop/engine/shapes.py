"""The shapes of a pruned prefill: how long its sequence is after each stage.

Budgets depend on numbers of tokens alone, so that all of it follows from the layout of a prompt, before anything runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vitcop.methods.base import Program


@dataclass
class StageShapes:
    """One stage of a prefill."""

    budgets: dict[int, int]  # m -> tokens to come out, of the samples (or images) with m visual tokens that lose some
    removed: list[int]  # visual tokens that each sample has lost afterwards, to this stage and those before it

    @property
    def prunes(self) -> bool:
        return bool(self.budgets)


@dataclass
class PrefillShapes:
    """The stages of a prefill in order."""

    stages: list[StageShapes]
    first: int | None  # the layer of the first stage that drops tokens; None: no stage does
    at: dict[int, list[int]]  # numbers of the stages in front of a layer
    hooked: list[int]  # layers with such a stage, and those before them


def prefill_shapes(
    program: Program, groups: Sequence[tuple[Sequence[int], tuple[int, ...]]], batch: int
) -> PrefillShapes:
    """
    Args:
        groups: (samples, visual tokens of each part with a budget of its own) for every group.

    Raises ValueError where a budget is infeasible.
    """
    left = {total: total for _, images in groups for total in images}
    after = {total: list(program.counts(total)) for total in sorted(left)}
    removed, stages = [0] * batch, []
    for number in range(len(program.stages)):
        budgets = {total: after[total][number] for total in left if after[total][number] < left[total]}
        removed = removed.copy()
        for samples, images in groups:
            dropped = sum(left[total] - budgets.get(total, left[total]) for total in images)
            for sample in samples:
                removed[sample] += dropped
        left |= budgets
        stages.append(StageShapes(budgets, removed))
    at: dict[int, list[int]] = {}
    for number, stage in enumerate(program.stages):
        at.setdefault(stage.layer, []).append(number)
    pruned = [s.layer for s, shapes in zip(program.stages, stages, strict=True) if shapes.prunes]
    hooked = sorted({index for layer in pruned for index in (layer, max(layer - 1, 0))})
    return PrefillShapes(stages, min(pruned, default=None), at, hooked)
