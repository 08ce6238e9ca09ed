"""prune_sequence on a GPU: the launches of the ops that it is composed of, one after another."""

from vitcop_kernels._aot import AotSpec
from vitcop_kernels.ops.compact_sequence.kernel import compact_sequence
from vitcop_kernels.ops.expand_plan.kernel import expand_plan
from vitcop_kernels.ops.plan_tokens.kernel import plan_tokens
from vitcop_kernels.ops.select_tokens.kernel import select_tokens

from .reference import composed

prune_sequence = composed(select_tokens, plan_tokens, expand_plan, compact_sequence)


def aot_specs() -> list[AotSpec]:
    """None of its own: the kernels are those of the four ops."""
    return []
