"""FlashAttention takes a 2-D mask or none and gets padding wrong silently: a stand-in with its exact mask semantics."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import TOLERANCE, assert_answers, generate
from flash_stand_in import use
from slow_llava import Turn, logits
from tiny_llava import batch, prompt, tiny_llava

import vitcop
from vitcop import ViTCoP

pytestmark = pytest.mark.family("llava")


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    yield use(tiny_llava(key_heads=2))


@pytest.mark.feature("FlashAttention's masks")
@pytest.mark.parametrize("semantics", ["paper", "released"])
def test_a_padded_batch(model: Any, semantics: str) -> None:
    method = ViTCoP(retention=0.3, semantics=semantics)
    prompts = [prompt(1), prompt(2), prompt(0), prompt(1, text=9)]
    output, _ = generate(model, method, batch(prompts), new=3)
    assert_answers(model, method, prompts, output)


def test_without_padding_no_mask_is_made(model: Any) -> None:
    method, seen = ViTCoP(retention=0.3), []
    layers = model.model.language_model.layers
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda m, a, k: seen.append(k["attention_mask"]), with_kwargs=True)
        for layer in layers
    ]
    prompts = [prompt(1), prompt(1, seed=3)]
    output, _ = generate(model, method, batch(prompts), new=2)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2 * len(layers) and all(mask is None for mask in seen)
    assert_answers(model, method, prompts, output)


def test_a_padded_batch_takes_another_turn(model: Any) -> None:
    method = ViTCoP(retention=0.4)
    first, second = [prompt(1), prompt(2)], [prompt(0, seed=7), prompt(1, seed=8)]
    one, two = batch(first), batch(second)
    with vitcop.prune(model, method), torch.no_grad():
        mask = one["attention_mask"]
        cache = model(**one, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True).past_key_values
        mask = torch.cat([mask, two["attention_mask"]], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -two["input_ids"].shape[1] :]
        output = model(**{**two, "attention_mask": mask}, position_ids=positions, past_key_values=cache)
    for sample in range(2):
        with torch.no_grad():
            expected = logits(model, method, [Turn(*first[sample]), Turn(*second[sample])], [])[-1]
        torch.testing.assert_close(output.logits[sample, -1], expected, atol=TOLERANCE, rtol=0)
