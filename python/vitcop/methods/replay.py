"""Replay the plans of an earlier prefill: the same token counts without choosing, to measure what choosing costs."""

import functools
from collections.abc import Sequence
from typing import Any

from vitcop.engine.report import Report

from .base import Context, Method, Plan, Program, Stage


class Replay(Method):
    """Prune as `report` says it was done, for prompts with the same layout."""

    def __init__(self, report: Report) -> None:
        if not report.stages:
            raise ValueError("report: expected the report of a prefill with visual tokens, got an empty one")
        self.positions: Any = report.positions
        layouts = list(report.stages[0].rows)
        if len({sum(images) for images in layouts}) < len(layouts):
            raise ValueError(
                "report: expected one layout of images for each number of visual tokens of a sample, got "
                f"{sorted(layouts)} (budgets per image)"
            )
        self.recorded = [
            (stage.name, stage.layer, {sum(images): plan for images, plan in stage.plans.items()})
            for stage in report.stages
        ]
        self.table: dict[int, list[int]] = {}
        for sample, total in enumerate(report.visual_tokens):
            self.table[total] = [stage.tokens_out[sample] for stage in report.stages]

    def program(self, num_layers: int) -> Program:
        stages = [Stage(name, layer, functools.partial(_replay, plans)) for name, layer, plans in self.recorded]
        return Program(stages, self._counts, self.positions)

    def _counts(self, total: int) -> Sequence[int]:
        if total not in self.table:
            raise ValueError(f"replay: expected prompts of {sorted(self.table)} visual tokens, got {total}")
        return self.table[total]


def _replay(plans: dict[int, Plan], ctx: Context) -> Plan:
    return plans[ctx.total]
