"""About a minute of the fuzzer, always the same cases, and what hypothesis finds with the same generators."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import NATIVE_OPS

from benchmarks.evidence.fuzz.campaign import chunks, run
from benchmarks.evidence.fuzz.cases import OPS, TRITON_EVERY, drawn
from benchmarks.evidence.fuzz.draw import Draw
from benchmarks.evidence.fuzz.judge import judge

NAMES = ("reference", *(["native"] if set(OPS) <= NATIVE_OPS else []))
CASES = 2400  # of all ops: seconds on one core for those of numbers and indices, half a minute for the clusterings
INTERPRETED = 4  # of each op, small ones that Triton's interpreter gets as well


def described(tally: Any) -> str:
    return "\n".join(f"{m['replay']}  # {m['implementation']}: {m['why']}" for m in tally.mismatches)


@pytest.mark.parametrize("op", OPS)
def test_a_slice_of_the_campaign_has_no_mismatch(op: str) -> None:
    tally = run(chunks([op], CASES // len(OPS), seed=10_001), NAMES)
    assert not tally.mismatches, described(tally)
    assert sum(tally.by().values()) == CASES // len(OPS) * len(NAMES)


@pytest.mark.parametrize("op", OPS)
def test_three_implementations_agree_on_small_cases(op: str) -> None:
    """Seeds of small cases; the third is Triton's interpreter."""
    work = [(op, seed, seed + 1) for seed in range(0, TRITON_EVERY * INTERPRETED, TRITON_EVERY)]
    tally = run(work, (*NAMES, "triton"))
    assert not tally.mismatches, described(tally)
    assert sum(tally.by(implementation="triton").values()) > 0


class HypothesisDraw(Draw):
    """Structures, sizes, options and strides by hypothesis, which makes a failure smaller; arrays by a drawn seed."""

    def __init__(self, data: Any) -> None:
        self.data, self.small, self.marks = data, True, set()
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed of the numbers"))

    def integer(self, low: int, high: int) -> int:
        return int(self.data.draw(st.integers(low, high)))

    def pick(self, options: Any) -> Any:
        return self.data.draw(st.sampled_from(list(options)))


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hypothesis_finds_no_counterexample(op: str, data: Any) -> None:
    judged = judge(drawn(op, HypothesisDraw(data)), NAMES)
    wrong = {name: verdict.why for name, verdict in judged.verdicts.items() if verdict.kind == "mismatch"}
    assert not wrong, (judged.case, wrong)
