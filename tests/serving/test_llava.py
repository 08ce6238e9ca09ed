"""LLaVA-1.5 in vLLM: as many tokens as asked for, and the answers of the Hugging Face path."""

from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is another installation: make test-vllm")

from engines import QUESTIONS, TINY, Ask, Engine, HuggingFace, assert_same

import vitcop
from vitcop import VisionOnly

IMAGE, ALL = 3, 196  # placeholder; visual tokens of vitcop-tiny


@pytest.fixture(scope="module")
def truth() -> HuggingFace:
    return HuggingFace(TINY)


@pytest.fixture(scope="module")
def engine(start: Any) -> Engine:
    """All budgets up to the whole image, prefixes cached."""
    return start(TINY, ALL, enable_mm_embeds=True, enable_prefix_caching=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def stock(start: Any) -> Engine:
    return start(TINY)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def narrow(start: Any) -> Engine:
    """A prefill takes many steps, and an image is cut by them."""
    return start(TINY, 64, max_num_batched_tokens=24, max_num_seqs=4)  # type: ignore[no-any-return]


@pytest.mark.parametrize("tokens", [1, 17, 64, 195, 196])
def test_token_counts_and_answers(engine: Engine, truth: HuggingFace, tokens: int) -> None:
    for ask in (Ask(QUESTIONS[0], (1,), tokens), Ask(QUESTIONS[1], (2, 3), min(tokens, 150))):
        (got,) = engine.ask(ask)
        assert got.prompt_ids.count(IMAGE) == ask.tokens * len(ask.pictures)  # type: ignore[operator]
        whole = truth.inputs(ask)["input_ids"][0].tolist()
        assert [i for i in got.prompt_ids if i != IMAGE] == [i for i in whole if i != IMAGE]
        assert_same(got, truth.ask(ask))


def test_all_tokens_are_the_stock_model(engine: Engine, stock: Engine) -> None:
    """Bit for bit, in a batch of the same shape."""
    asked = [Ask(QUESTIONS[0], (4,)), Ask(QUESTIONS[1], (5, 6)), Ask(QUESTIONS[2], ())]
    for got, expected in zip(engine.ask(*asked), stock.ask(*asked), strict=True):
        assert got.prompt_ids == expected.prompt_ids and got.ids == expected.ids
        assert torch.equal(got.logprobs, expected.logprobs)


def test_without_the_key_the_class_is_vllms_own(engine: Engine, stock: Engine) -> None:
    def kind(e: Engine) -> str:
        return e.llm.apply_model(lambda model: f"{type(model).__module__}.{type(model).__name__}")[0]  # type: ignore[no-any-return]

    assert kind(stock) == "vllm.model_executor.models.llava.LlavaForConditionalGeneration"
    assert kind(engine) == "vitcop.serving.llava.VitcopLlavaForConditionalGeneration"


def test_mixed_budgets_in_a_batch(engine: Engine, truth: HuggingFace) -> None:
    """Images of one pass of the tower, each with its own number of tokens; the same image with several."""
    asked = [Ask(QUESTIONS[n % 6], (n,), tokens) for n, tokens in enumerate((8, 64, 196, 8, 33))]
    asked += [Ask(QUESTIONS[0], (0, 7), 33), Ask(QUESTIONS[3], ()), Ask(QUESTIONS[0], (0,), 9)]
    engine.forget()
    for ask, got in zip(asked, engine.ask(*asked), strict=True):
        assert got.prompt_ids.count(IMAGE) == (ask.tokens or 0) * len(ask.pictures)
        assert_same(got, truth.ask(ask))


def test_more_images_than_one_pass_of_the_tower(
    engine: Engine, truth: HuggingFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitcop.serving import tower

    passes: list[int] = []
    run = tower.PrunedTower._reduced
    monkeypatch.setattr(tower, "MAX_TILES", 3)
    monkeypatch.setattr(
        tower.PrunedTower, "_reduced", lambda self, whole, *rest: passes.append(len(whole)) or run(self, whole, *rest)
    )
    asked = [Ask(QUESTIONS[n % 6], (8 + n,), 16) for n in range(7)]
    engine.forget()
    answers = engine.ask(*asked)
    assert max(passes) == 3 and sum(passes) == 7
    for ask, got in zip(asked, answers, strict=True):
        assert_same(got, truth.ask(ask))


def test_prefixes_are_shared_by_equal_budgets_alone(engine: Engine, truth: HuggingFace) -> None:
    engine.forget()
    asked = [Ask(QUESTIONS[4], (9,), tokens) for tokens in (160, 160, 130, 130, 160)]
    answers = [engine.ask(ask)[0] for ask in asked]
    assert [answer.cached for answer in answers] == [0, 128, 0, 128, 128]  # blocks on a CPU are of 128 tokens
    for ask, got in zip(asked, answers, strict=True):
        assert_same(got, truth.ask(ask))


def test_a_prefill_in_chunks_that_cut_an_image(narrow: Engine, truth: HuggingFace) -> None:
    asked = [Ask(QUESTIONS[0], (1,)), Ask(QUESTIONS[1], (2, 3), 40), Ask(QUESTIONS[4], (1,), 7)]
    for ask, got in zip(asked, narrow.ask(*asked), strict=True):
        count = ask.tokens or 64
        assert got.prompt_ids.count(IMAGE) == count * len(ask.pictures)
        assert_same(got, truth.ask(Ask(ask.question, ask.pictures, count)))


def test_embeddings_are_served_as_they_come(engine: Engine, truth: HuggingFace) -> None:
    """A picture that the Hugging Face path has pruned is the picture that the server prunes."""
    ask, kept = Ask(QUESTIONS[1], (10,), 48), []
    decoder = truth.model.model.language_model
    with vitcop.prune(truth.model, VisionOnly(retain=48), budget_per="image"), torch.no_grad():
        # Inside the layer: what vitcop left.
        hook = decoder.layers[0].input_layernorm.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
        truth.model(**truth.inputs(ask))
        hook.remove()
    begin = truth.inputs(ask)["input_ids"][0].tolist().index(IMAGE)
    embeddings = kept[0][:, begin : begin + 48]
    (got,) = engine.ask(ask, images=[embeddings])
    assert got.prompt_ids.count(IMAGE) == 48
    assert_same(got, engine.ask(ask)[0])


def test_a_budget_above_the_engines_is_refused_and_the_engine_goes_on(narrow: Engine, truth: HuggingFace) -> None:
    for wrong in (65, 0, "8"):
        with pytest.raises(
            ValueError, match="vitcop_tokens: expected a number from 1 to 64, what the engine was start"
        ):
            narrow.ask(Ask(QUESTIONS[0], (1,), wrong))  # type: ignore[arg-type]
    ask = Ask(QUESTIONS[0], (2,), 12)
    assert_same(narrow.ask(ask)[0], truth.ask(ask))
