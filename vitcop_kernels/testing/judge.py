"""One case: run every implementation, judge each answer, compare each pair of answers."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .implementations import implementation, interpretable
from .op import Arguments, Case
from .table import TABLE
from .verdicts import Verdict, mismatch, same


@dataclass
class Judged:
    case: Case
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    pairs: dict[tuple[str, str], str] = field(default_factory=dict)  # "same bits", "both within bounds" or "mismatch"


def run(case: Case, call: Callable[..., Any]) -> Any:
    """The answer, or the Verdict of an implementation that raised or changed an input."""
    kept = tree_map_only(Tensor, torch.clone, case.args)
    try:
        got = call(*case.args, **case.kwargs)
    except Exception as error:  # a valid call never raises, whatever its type
        return mismatch(f"raised {type(error).__name__}: {error}")
    return got if same(case.args, kept) else mismatch("changed an input")


def judge(case: Case, names: Sequence[str], calls: dict[str, Callable[..., Any]] | None = None) -> Judged:
    """`calls` replaces implementations by name; the Triton kernels get small cases of their own dtypes only."""
    judged, answers, truth = Judged(case), {}, TABLE[case.op].truth(case)
    for name in names:
        if name == "triton" and not (case.small and case.dtype != torch.float64):
            continue
        if name == "triton" and not interpretable(case.args):
            case.marks = (*case.marks, "subnormal bfloat16, left out of Triton's interpreter, which misreads it")
            continue
        got = run(case, (calls or {}).get(name) or implementation(name, case.op))
        if not isinstance(got, Verdict):
            answers[name], got = got, truth.judge(got, name)
        judged.verdicts[name] = got
    for a, b in itertools.combinations(answers, 2):
        right = "mismatch" not in (judged.verdicts[a].kind, judged.verdicts[b].kind)
        judged.pairs[a, b] = (
            "same bits" if same(answers[a], answers[b]) else "both within bounds" if right else "mismatch"
        )
    return judged


def complete(op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Arguments:
    """All arguments of a call, defaults filled in, on the CPU."""
    schema = getattr(torch.ops.vitcop, op).default._schema.arguments
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    named |= dict(zip((a.name for a in schema if not a.kwarg_only), args, strict=False)) | kwargs
    named = tree_map_only(Tensor, lambda t: t.detach().cpu(), named)
    positional = tuple(named[a.name] for a in schema if not a.kwarg_only)
    return positional, {a.name: named[a.name] for a in schema if a.kwarg_only}


def verify(op: str, args: Sequence[Any], kwargs: dict[str, Any], got: Any, implementation: str = "native") -> None:
    """Raise AssertionError unless `got` is a right answer of the op."""
    positional, options = complete(op, args, kwargs)
    got = tree_map_only(Tensor, lambda t: t.detach().cpu(), got)
    verdict = TABLE[op].truth(Case(op, positional, options, positional[0].dtype)).judge(got, implementation)
    if verdict.kind == "mismatch":
        raise AssertionError(f"{op}: {verdict.why}")
