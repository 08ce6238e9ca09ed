"""Replay the plans of an earlier prefill: the same token counts without the choosing, to measure what choosing costs."""

from collections.abc import Sequence

from vitcop.report import Report

from .base import Context, Method, Plan, Positions, Program, Stage


class Replay(Method):
    """Prune as `report` says it was done, for prompts with the same layout."""

    def __init__(self, report: Report, positions: Positions = "compact") -> None:
        if not report.stages:
            raise ValueError("report: expected the report of a prefill with visual tokens, got an empty one")
        self.positions = positions
        self.recorded = [(stage.name, stage.layer, dict(stage.plans)) for stage in report.stages]
        self.table: dict[int, list[int]] = {}
        for sample, total in enumerate(report.visual_tokens):
            self.table[total] = [stage.tokens_out[sample] for stage in report.stages]

    def program(self, num_layers: int) -> Program:
        def replay(plans: dict[int, Plan]) -> Stage:
            def select(ctx: Context) -> Plan:
                return plans[ctx.total]

            return Stage(name, layer, select)

        stages = []
        for name, layer, plans in self.recorded:
            stages.append(replay(plans))
        return Program(stages, self._counts, self.positions)

    def _counts(self, total: int) -> Sequence[int]:
        if total not in self.table:
            raise ValueError(f"replay: expected prompts of {sorted(self.table)} visual tokens, got {total}")
        return self.table[total]
