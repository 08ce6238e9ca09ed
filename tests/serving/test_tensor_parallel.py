"""Two ranks, each with half of the heads of tower and decoder, choose the same tokens as one."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is another installation: make test-vllm")

import torch
from engines import QUESTIONS, TINY, TOLERANCE, Ask, Engine, HuggingFace, assert_same

ASKED = [Ask(QUESTIONS[n % 6], (16 + n,), tokens) for n, tokens in enumerate((8, 32, 64, 17))]


@pytest.fixture(scope="module")
def engine(start: Any) -> Engine:
    """Its ranks are processes of their own; the tests reach into them."""
    os.environ |= {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    return start(TINY, 196, tensor_parallel_size=2)  # type: ignore[no-any-return]


def test_answers_are_those_of_one_rank(engine: Engine) -> None:
    truth = HuggingFace(TINY)
    for ask, got in zip(ASKED, engine.ask(*ASKED), strict=True):
        assert got.prompt_ids.count(3) == ask.tokens
        assert_same(got, truth.ask(ask))


@pytest.fixture
def replace(engine: Engine) -> Iterator[Callable[[Callable[[Any], Any]], None]]:
    """replace(f): in every rank `parallel.sum_over_heads` becomes `f(itself)`, until the end of the test."""

    def change(by: Callable[[Any], Any]) -> None:
        def of(worker: Any) -> None:
            from vitcop.engine import parallel

            parallel.original = getattr(parallel, "original", parallel.sum_over_heads)
            parallel.sum_over_heads = by(parallel.original)

        engine.llm.collective_rpc(of)

    yield change
    change(lambda original: original)


def test_the_choice_of_one_rank_alone_would_be_another(engine: Engine, replace: Any) -> None:
    """The control: with scores of a rank's own heads the answers move by far more than rounding."""
    engine.forget()
    right = engine.ask(*ASKED)
    replace(lambda original: lambda received, group: received)
    engine.forget()
    wrong = engine.ask(*ASKED)
    moved = [float((a.logprobs - b.logprobs).abs().max()) for a, b in zip(right, wrong, strict=True)]
    assert min(moved) > 25 * TOLERANCE, moved


def test_ranks_that_disagree_follow_the_first(engine: Engine, replace: Any) -> None:
    """A rank whose scores are all wrong changes nothing, as long as it is not the first."""

    def wrong_on(rank: int) -> Callable[[Any], Any]:
        def by(original: Any) -> Any:
            from vllm.distributed import get_tensor_model_parallel_rank

            mine = get_tensor_model_parallel_rank() == rank
            return lambda received, group: -original(received, group) if mine else original(received, group)

        return by

    engine.forget()
    right = engine.ask(*ASKED)
    changed = []
    for rank in (1, 0):
        replace(wrong_on(rank))
        engine.forget()
        pairs = zip(right, engine.ask(*ASKED), strict=True)
        changed.append([not torch.equal(a.logprobs, b.logprobs) for a, b in pairs])
    assert changed == [[False] * 4, [True] * 4]
