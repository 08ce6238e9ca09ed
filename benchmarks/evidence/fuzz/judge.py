"""One case: run every implementation, judge each answer, compare each pair of answers."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from .cases import Case
from .implementations import implementation, interpretable
from .truth_clusters import Clustering
from .truth_numbers import AttentionSaliency, CompactSequence, KeyNorms, Projection, SegmentMean, SegmentMeanBackward
from .truth_plans import ExpandPlan, PlanTokens, SelectTokens
from .verdicts import Verdict, mismatch, same_bits

TRUTHS: dict[str, Callable[[Case], Any]] = dict(
    attention_saliency=AttentionSaliency, compact_sequence=CompactSequence, expand_plan=ExpandPlan, key_norms=KeyNorms,
    key_proj=Projection, key_proj_norms=Projection, plan_tokens=PlanTokens, segment_mean=SegmentMean,
    segment_mean_backward=SegmentMeanBackward, select_tokens=SelectTokens, vic_cluster=Clustering,
    vic_cluster_varlen=Clustering,
)  # fmt: skip


@dataclass
class Judged:
    case: Case
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    pairs: dict[tuple[str, str], str] = field(default_factory=dict)  # "same bits", "both within bounds" or "mismatch"


def flat(value: Any) -> list[Tensor]:
    return [t for t in tree_flatten(value)[0] if isinstance(t, Tensor)]


def same(a: Any, b: Any) -> bool:
    return all(same_bits(x, y) for x, y in zip(flat(a), flat(b), strict=True))


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
    judged, answers, truth = Judged(case), {}, TRUTHS[case.op](case)
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
