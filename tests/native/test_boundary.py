"""What the fuzzer once found interesting, on the build that users have; and that its judge can say no."""

import json
from pathlib import Path

import pytest
import torch
from support import NATIVE_OPS, OPS

from vitcop_kernels.testing import boundary
from vitcop_kernels.testing import contract as verdict
from vitcop_kernels.testing.boundary import Call, Violation
from vitcop_kernels.testing.table import call_from

LINES = (line.split() for line in (Path(__file__).parent / "corpus.txt").read_text().splitlines())
CORPUS = [(op, bytes.fromhex(data)) for op, data in LINES]
native = pytest.mark.skipif(set(OPS) != NATIVE_OPS, reason="references clamp what kernels on the CPU refuse")


@native
@pytest.mark.parametrize("op", OPS)
def test_every_call_of_the_corpus_is_answered_rightly_or_refused(op: str) -> None:
    calls = [call_from(op, data) for name, data in CORPUS if name == op]
    assert len(calls) >= 5
    seen = {verdict.check(call, against_reference=True) for call in calls}
    assert seen >= {"answer", "refused"}


def test_any_bytes_make_a_call_and_the_same_bytes_the_same_call() -> None:
    for op in OPS:
        for data in (b"", bytes(range(96)), b"\xff" * 200):
            assert str(call_from(op, data)) == str(call_from(op, data))


SELECT = Call("select_tokens", {"scores": torch.randn(4), "k": 2, "largest": False})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([torch.tensor([1, 4])], "index outside [0, 4)"),
        ([torch.tensor([2, 1])], "not ascending"),
        ([torch.tensor([1, 2, 3])], "output 0 is"),
        ([torch.tensor([1, 2], dtype=torch.int32)], "output 0 is"),
        ([torch.tensor([1, 2])] * 2, "another number of outputs"),
        (RuntimeError("oops"), "not a documented error"),
        (ValueError("k: expected less"), "does not name"),
        (ValueError("select_tokens: k: expected less, got 2"), "the fake accepts"),
    ],
    ids=str,
)
def test_the_judge_sees_a_wrong_answer(monkeypatch: pytest.MonkeyPatch, answer: verdict.Outcome, words: str) -> None:
    real = verdict.outcome
    monkeypatch.setattr(
        verdict, "outcome", lambda call, *args, **where: real(call, *args, **where) if args or where else answer
    )
    with pytest.raises(Violation) as caught:
        verdict.check(SELECT)
    assert words in str(caught.value)


def test_the_judge_sees_a_changed_input_and_a_wrong_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = verdict.outcome

    def changing(call: Call, *args: str, **where: str) -> verdict.Outcome:
        if not args and not where:
            call.given["scores"].zero_()
        return real(call, *args, **where)

    monkeypatch.setattr(verdict, "outcome", changing)
    with pytest.raises(Violation, match="an input was changed"):
        verdict.check(Call("select_tokens", {"scores": torch.ones(4), "k": 2, "largest": False}))
    monkeypatch.setattr(
        verdict,
        "outcome",
        lambda call, *args, **where: real(call, *args, **where) if args or where else [torch.tensor([0])],
    )
    scores = torch.tensor([3.0, 1.0, 2.0])
    with pytest.raises(Violation, match="the reference has"):
        verdict.check(Call("select_tokens", {"scores": scores, "k": 1, "largest": False}), against_reference=True)


def test_huge_sizes_need_no_memory() -> None:
    """The tensors that the fuzzer makes: nothing but strides of zero and empty dimensions."""
    sizes = [
        t.untyped_storage().nbytes()
        for op, data in CORPUS
        for t in call_from(op, data).tensors()
        if t.device.type == "cpu"
    ]
    assert max(sizes) < 64e6
    assert any(
        max(t.shape, default=0) in boundary.HUGE_SIZES for op, data in CORPUS for t in call_from(op, data).tensors()
    )
    assert json.dumps(sizes)
