"""Selections that no method publishes: they show where the model looks, and what a ranking is worth by itself."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import vitcop_kernels as ops
from vitcop.methods import Context, Method, Plan, Program, Random, Stage

RANKINGS = ("cls", "key_norm_smallest", "key_norm_largest", "attention", "random")


@dataclass
class Ranked(Method):
    """One cut before `layer`: `retention` of the tokens stay, the first of one ranking. Position ids are original, so
    that nothing but the choice differs.

    ranking: "cls" (attention of [CLS] in the vision tower), "key_norm_smallest", "key_norm_largest", "attention" (of
    the prompt's last token in that layer) or "random".
    """

    ranking: str
    retention: float
    layer: int = 0
    seed: int = 0

    def program(self, num_layers: int) -> Program:
        return Program([Stage("ranked", self.layer, self._select)], self._counts, "original")

    def _counts(self, total: int) -> Sequence[int]:
        return [max(1, round(self.retention * total))]

    def _select(self, ctx: Context) -> Plan:
        if self.ranking == "random":
            return Plan(Random(retention=self.retention, seed=self.seed).choose(0, ctx))
        scores = {
            "cls": lambda: ctx.saliency,
            "key_norm_smallest": lambda: -ctx.key_norms(),
            "key_norm_largest": lambda: ctx.key_norms(),
            "attention": lambda: ctx.attention("layer"),
        }[self.ranking]()
        return Plan(ops.select_tokens(scores, ctx.budget, largest=True))


@dataclass
class Original(Method):
    """A method whose tokens keep the position ids that they have in the unpruned prompt."""

    method: Method

    def program(self, num_layers: int) -> Program:
        return dataclasses.replace(self.method.program(num_layers), positions="original")


@dataclass
class Hidden(Method):
    """All visual tokens but one, the middle one, are taken away before `layer`: what is lost was read there or later.
    Before layer 0, what is left is guessing."""

    layer: int

    def program(self, num_layers: int) -> Program:
        return Program([Stage("hidden", self.layer, _middle)], lambda total: [1], "original")


def _middle(ctx: Context) -> Plan:
    samples = ctx.segment.shape[0]
    return Plan(torch.full((samples, 1), ctx.count // 2, device=ctx.segment.device))
