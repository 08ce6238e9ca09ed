"""About a minute of the fuzzer, always the same cases, and what hypothesis finds with the same generators."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vitcop_kernels
from verification.fuzz import Tally, chunks, replay, run
from vitcop_kernels.testing import judge as judging
from vitcop_kernels.testing.draw import Draw
from vitcop_kernels.testing.judge import judge
from vitcop_kernels.testing.table import TABLE, TRITON_EVERY, drawn

OPS = tuple(TABLE)
NAMES = ("reference", *([] if vitcop_kernels.native_error else ["native"]))
CASES = 1200  # of all ops: seconds on one core for those of numbers and indices, half a minute for the clusterings
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
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hypothesis_finds_no_counterexample(op: str, data: Any) -> None:
    judged = judge(drawn(op, HypothesisDraw(data)), NAMES)
    wrong = {name: verdict.why for name, verdict in judged.verdicts.items() if verdict.kind == "mismatch"}
    assert not wrong, (judged.case, wrong)


def test_a_campaign_counts_and_reports_mismatches(monkeypatch: pytest.MonkeyPatch) -> None:
    implementation = judging.implementation

    def wrong(name: str, op: str) -> Any:
        right = implementation(name, op)
        return lambda *args, **kwargs: right(*args, **kwargs) + (name == "native")

    monkeypatch.setattr(judging, "implementation", wrong)
    tally = run(chunks(["key_norms"], 30, seed=5), ("reference", "native"))
    answers = tally.by(implementation="native")
    assert answers["mismatch"] > 20 and tally.by(implementation="reference")["mismatch"] == 0
    first = tally.mismatches[0]
    assert first["replay"] == replay("key_norms", first["seed"]) and first["why"]


def test_tallies_add_up() -> None:
    whole, parts = run(chunks(["select_tokens"], 20, 0), ["reference"]), Tally()
    for work in (chunks(["select_tokens"], 10, 0), chunks(["select_tokens"], 10, 10)):
        parts.merge(run(work, ["reference"]))
    assert parts.found() == whole.found() and whole.found()["cases"] == 20
