"""Batches of prompts with any number of pictures are answered, and scored, as each alone would be."""

from typing import Any

import pytest
import torch

import vitcop
from vitcop import ViTCoP
from vitcop.evaluation.answering import Answerer, Prompt, cut
from vitcop.loading import load_checkpoint

METHOD = ViTCoP(retain=64)


@pytest.fixture(scope="module")
def answerer(checkpoint: Any) -> Answerer:
    loaded = load_checkpoint(str(checkpoint), torch.device("cpu"), "float32")
    return Answerer(loaded.model, loaded.processor, METHOD)


@pytest.fixture(scope="module")
def prompts(answerer: Answerer, pictures: list[Any]) -> list[Prompt]:
    asked = [("what is on the table", 1), ("which of them is the window and who", 2), ("where is the cup", 1)]
    return [Prompt(answerer.question(text, images), pictures[:images]) for text, images in asked]


def test_a_batch_of_one_and_two_pictures_is_answered_as_each_alone(answerer: Answerer, prompts: list[Prompt]) -> None:
    together = answerer.generate(prompts, max_new_tokens=4, do_sample=False)
    alone = [answerer.generate([prompt], max_new_tokens=4, do_sample=False)[0] for prompt in prompts]
    assert together == alone
    assert len({text for text, _ in together}) > 1  # they are told apart at all


def test_what_was_kept_is_counted(answerer: Answerer, prompts: list[Prompt]) -> None:
    answerer.kept.clear()
    answerer.generate(prompts[:1], max_new_tokens=1, do_sample=False)
    assert answerer.kept == pytest.approx([64], abs=1)
    assert answerer.seen[-1] == 576


def test_without_a_method_nothing_is_pruned(answerer: Answerer, prompts: list[Prompt]) -> None:
    plain = Answerer(answerer.model, answerer.processor, None)
    inputs = plain.encode(prompts[:1])
    with torch.no_grad():
        expected = answerer.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    text = plain.generate(prompts[:1], max_new_tokens=4, do_sample=False)[0][0]
    new = expected[0, inputs["input_ids"].shape[1] :]
    assert text == answerer.processor.tokenizer.decode(new, skip_special_tokens=True)
    assert plain.kept == []


def test_losses_are_those_of_decoding_token_by_token(answerer: Answerer, prompts: list[Prompt]) -> None:
    continuations = [" red", " the old boat", " a cup"]
    found = answerer.losses(prompts, continuations)
    for prompt, continuation, (loss, greedy) in zip(prompts, continuations, found, strict=True):
        inputs = answerer.encode([prompt])
        total, best, cache = [], True, None
        tokens = answerer._added(prompt.text, continuation)
        with vitcop.prune(answerer.model, METHOD), torch.no_grad():
            step = answerer.model(**inputs, use_cache=True)
            for number, token in enumerate(tokens):
                distribution = step.logits[0, -1].float().log_softmax(-1)
                total.append(-float(distribution[token]))
                best = best and int(distribution.argmax()) == token
                cache = step.past_key_values
                mask = torch.ones(1, inputs["input_ids"].shape[1] + number + 1, dtype=torch.int64)
                step = answerer.model(torch.tensor([[token]]), attention_mask=mask, past_key_values=cache)
        # float32: the batch is padded, so sums in the matrix products are taken in another order
        assert loss == pytest.approx(sum(total) / len(total), rel=1e-4)
        assert greedy == best


def test_the_greedy_answer_is_said_to_be_greedy(answerer: Answerer, prompts: list[Prompt]) -> None:
    text, _ = answerer.generate(prompts[:1], max_new_tokens=1, do_sample=False)[0]
    (_, greedy), (_, other) = answerer.losses([prompts[0]] * 2, [f" {text}", " zebra"])
    assert greedy and not other


def test_a_continuation_without_tokens_is_refused(answerer: Answerer, prompts: list[Prompt]) -> None:
    with pytest.raises(ValueError, match="continuation: expected text that adds a token"):
        answerer.losses(prompts[:1], [""])


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a cup\nof tea", ["\n"], "a cup"),
        ("a cup of tea", ["tea", " of"], "a cup"),
        ("a cup", ["\n"], "a cup"),
        ("a cup", [""], "a cup"),
    ],
)
def test_answers_end_before_the_first_stop_string(text: str, stop: list[str], expected: str) -> None:
    assert cut(text, stop) == expected
