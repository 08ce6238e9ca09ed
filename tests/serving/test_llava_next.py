"""LLaVA-NeXT in vLLM: one budget for the base picture and the tiles of an image, whatever its shape."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is another installation: make test-vllm")

from checkpoints import llava_next
from engines import QUESTIONS, Ask, Engine, HuggingFace, assert_same

IMAGE = 3
SQUARE, WIDE, TALL, SLIM = 0, 48, 96, 144  # numbers of pictures by their shape
LIMITS = {"max_model_len": 2048, "max_num_batched_tokens": 2048, "limit_mm_per_prompt": {"image": 2}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_next(tmp_path_factory.mktemp("llava-next-mistral"))


@pytest.fixture(scope="module")
def truth(checkpoint: Path) -> HuggingFace:
    return HuggingFace(checkpoint)


@pytest.fixture(scope="module")
def engine(start: Any, checkpoint: Path) -> Engine:
    """A budget that is more than a small image has."""
    return start(checkpoint, 10**4, **LIMITS)  # type: ignore[no-any-return]


def test_counts_and_answers(engine: Engine, truth: HuggingFace) -> None:
    """In one batch: 2 or 4 tiles, padding cut off, several images, several budgets, all of an image."""
    asked = [
        Ask(QUESTIONS[0], (SQUARE,), 64),
        Ask(QUESTIONS[1], (WIDE,), 16),
        Ask(QUESTIONS[2], (TALL + 1,), 64),
        Ask(QUESTIONS[3], (SLIM, WIDE + 2), 48),
        Ask(QUESTIONS[0], (SLIM,), 550),
        Ask(QUESTIONS[4], (WIDE, SQUARE), 5),
        Ask(QUESTIONS[1], (WIDE,)),
    ]
    for ask, got in zip(asked, engine.ask(*asked), strict=True):
        whole = truth.inputs(ask)["input_ids"][0].tolist().count(IMAGE)
        expected = truth.ask(ask)
        count = min(whole, (ask.tokens or whole) * len(ask.pictures))
        assert got.prompt_ids.count(IMAGE) == count
        assert_same(got, expected)


def test_all_tokens_are_the_stock_model(engine: Engine, start: Any, checkpoint: Path) -> None:
    asked = [Ask(QUESTIONS[0], (SQUARE + 1,)), Ask(QUESTIONS[1], (WIDE + 3, SLIM + 1)), Ask(QUESTIONS[2], ())]
    stock = start(checkpoint, **LIMITS)
    for got, expected in zip(engine.ask(*asked), stock.ask(*asked), strict=True):
        assert got.prompt_ids == expected.prompt_ids and got.ids == expected.ids
        assert torch.equal(got.logprobs, expected.logprobs)
