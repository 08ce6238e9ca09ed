"""FlashAttention takes a 2-D mask or none and gets padding wrong silently: a stand-in with its exact mask semantics."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import TOLERANCE, assert_answers, generate
from slow_llava import Turn, logits
from tiny_llava import batch, prompt, tiny_llava
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import vitcop
from vitcop import ViTCoP

NAME = "flash_stand_in"

pytestmark = pytest.mark.family("llava")


def flash_stand_in(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Unpads by the mask, and is causal from the bottom right: the last query sees all keys of its sample."""
    position_ids = kwargs.get("position_ids")
    assert position_ids is None or bool((position_ids.diff(dim=-1) == 1).all()), "would be taken for packed sequences"
    batch, heads, queries, _ = query.shape
    repeat = heads // key.shape[1]
    out = torch.zeros_like(query)
    if attention_mask is None:
        attention_mask = torch.ones(batch, key.shape[2])
    assert attention_mask.dim() == 2 and attention_mask.shape[1] == key.shape[2], attention_mask.shape
    for b in range(batch):
        keep = attention_mask[b].bool()
        asked = keep[-queries:]
        k = key[b][:, keep].repeat_interleave(repeat, 0)
        v = value[b][:, keep].repeat_interleave(repeat, 0)
        q = query[b][:, asked]
        causal = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
        weights = (q @ k.transpose(1, 2) * scaling).masked_fill(~causal, -torch.inf).softmax(-1)
        row = torch.zeros_like(out[b])
        row[:, asked] = weights @ v
        out[b] = row
    return out.transpose(1, 2), None


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    AttentionInterface.register(NAME, flash_stand_in)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    model = tiny_llava(key_heads=2)
    model.model.language_model.config._attn_implementation = NAME
    yield model


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
