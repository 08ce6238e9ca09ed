"""Every kind of call with FlashAttention's masks gives what SDPA gives, which is compared with the slow reference."""

import functools
from collections.abc import Callable
from typing import Any

import flash_stand_in
import pytest
import torch
from families import Family, parameters
from tiny_llava import PAD
from torch import Tensor

import vitcop
from vitcop import ViTCoP

METHOD = ViTCoP(retention=0.3)
# Both are float32 and add in another order; logits have a standard deviation of about 2.5.
TOLERANCE = 2e-4


@functools.cache
def models(family: Family) -> tuple[Any, Any]:
    """The same weights with SDPA and with the stand-in."""
    return family.build(key_heads=2), flash_stand_in.use(family.build(key_heads=2))


def answer(model: Any, inputs: dict[str, Any], **options: Any) -> list[Tensor]:
    options = {"max_new_tokens": 4, "do_sample": False, **options}
    output = model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **options)
    return [output.sequences, *output.logits]


def positions(mask: Tensor, last: int) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)[:, -last:]


def greedy(family: Family, model: Any) -> list[Tensor]:
    return answer(model, family.batch([family.prompt(1), family.prompt(0), family.prompt(2)]))


def sampling(family: Family, model: Any) -> list[Tensor]:
    torch.manual_seed(0)
    return answer(model, family.batch([family.prompt(1), family.prompt(2)]), do_sample=True, top_k=0)


def beams(family: Family, model: Any) -> list[Tensor]:
    return answer(model, family.batch([family.prompt(1), family.prompt(1, text=8)]), num_beams=2)


def prompt_lookup(family: Family, model: Any) -> list[Tensor]:
    ids, images = family.prompt(1)
    inputs = family.batch([([*ids, *ids[-4:]], images)])
    return answer(model, inputs, max_new_tokens=8, prompt_lookup_num_tokens=3, eos_token_id=PAD)


def assisted(family: Family, model: Any) -> list[Tensor]:
    assistant = family.build(key_heads=2, layers=4)
    assistant.generation_config.num_assistant_tokens = 3
    inputs = family.batch([family.prompt(1)])
    return answer(model, inputs, max_new_tokens=5, assistant_model=assistant, eos_token_id=PAD)


def right_padding(family: Family, model: Any) -> list[Tensor]:
    inputs = family.batch([family.prompt(1), family.prompt(2)], "right")
    mask = inputs["attention_mask"]
    output = model(**inputs, position_ids=positions(mask, mask.shape[1]), use_cache=True)
    mask = torch.cat([mask, torch.ones_like(mask[:, :2])], 1)
    steps = [output.logits * inputs["attention_mask"][..., None]]
    for step in range(2):
        seen = mask[:, : inputs["input_ids"].shape[1] + step + 1]
        token = torch.tensor([[11 + step], [13 + step]])
        past = dict(past_key_values=output.past_key_values, attention_mask=seen, position_ids=positions(seen, 1))
        steps.append(model(input_ids=token, **past).logits)
    return steps


def turns(family: Family, model: Any) -> list[Tensor]:
    one = family.batch([family.prompt(1), family.prompt(2)])
    two = family.batch([family.prompt(1, seed=7), family.prompt(1, seed=8, text=8)])
    mask = one["attention_mask"]
    first = model(**one, position_ids=positions(mask, mask.shape[1]), use_cache=True)
    mask = torch.cat([mask, two.pop("attention_mask")], 1)
    ids = positions(mask, two["input_ids"].shape[1])
    second = model(**two, attention_mask=mask, position_ids=ids, past_key_values=first.past_key_values)
    return [first.logits[:, -1], second.logits[:, -1]]


def loss(family: Family, model: Any) -> list[Tensor]:
    inputs = family.batch([family.prompt(1), family.prompt(2)])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = ids.masked_fill((ids == family.image_id) | (mask.cumsum(1) * mask < 2), -100)
    weight = model.model.multi_modal_projector.linear_2.weight
    with torch.enable_grad():
        value = model(**inputs, labels=labels).loss
        return [value, *torch.autograd.grad(value, weight)]


def hidden_states(family: Family, model: Any) -> list[Tensor]:
    inputs = family.batch([family.prompt(1), family.prompt(2)])
    return list(model(**inputs, output_hidden_states=True).hidden_states)


def embeddings(family: Family, model: Any) -> list[Tensor]:
    inputs = family.batch([family.prompt(1), family.prompt(2)])
    ids = inputs.pop("input_ids")
    return answer(model, inputs | {"inputs_embeds": model.get_input_embeddings()(ids)})


KINDS: list[Callable[[Family, Any], list[Tensor]]] = [
    greedy, sampling, beams, prompt_lookup, assisted, right_padding, turns, loss, hidden_states, embeddings,
]  # fmt: skip


@pytest.mark.feature("FlashAttention's masks")
@pytest.mark.parametrize("family", parameters("llava"), indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_calls(family: Family, kind: Callable[[Family, Any], list[Tensor]]) -> None:
    found = []
    for model in models(family):
        with vitcop.prune(model, METHOD) as report, torch.no_grad():
            found.append((kind(family, model), [stage.kept for stage in report.stages]))
    (expected, wanted), (got, kept) = found
    assert len(kept) == 3 and all(torch.equal(a, b) for a, b in zip(kept, wanted, strict=True))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.feature("FlashAttention's masks")
def test_a_padded_batch_of_every_family(family: Family) -> None:
    found = []
    for model in models(family):
        with vitcop.prune(model, METHOD):
            found.append(answer(model, family.batch(family.prompts()), max_new_tokens=3))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)
