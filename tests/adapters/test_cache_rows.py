"""Rows of a batch: of a pruned cache, of samples packed into one, and of nothing but padding."""

import copy
import io
from typing import Any

import pytest
import torch
from families import FAMILIES

import vitcop
from vitcop import FastV, VisionOnly, ViTCoP

METHOD = ViTCoP(retention=0.3)
FAMILY = FAMILIES["llava"]


def step(prompts: list[Any], change: Any, rows: list[int]) -> torch.Tensor:
    """Logits of a decoding step after `change(cache)`, which leaves these rows of the prompts."""
    model, inputs = FAMILY.model(), FAMILY.batch(prompts)
    mask, rows_ = inputs["attention_mask"], torch.tensor(rows)
    output = model(**inputs, **FAMILY.positions(mask), use_cache=True)
    cache = change(output.past_key_values)
    token, mask = output.logits[:, -1].argmax(-1), torch.cat([mask[rows_], mask.new_ones(len(rows), 1)], 1)
    return model(
        input_ids=token[rows_][:, None], attention_mask=mask, past_key_values=cache, **FAMILY.positions(mask, 1)
    ).logits[:, -1]


def changed(name: str, *args: Any) -> Any:
    def change(cache: Any) -> Any:
        getattr(cache, name)(*args)
        return cache

    return change


def pickled(cache: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(cache, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_decoding_a_padded_batch_is_the_same_in_every_grad_mode_and_with_more_rows(implementation: str) -> None:
    model = FAMILY.build(layers=4)
    model.set_attn_implementation(implementation)
    inputs = FAMILY.batch([FAMILY.prompt(1), FAMILY.prompt(2), FAMILY.prompt(0)])
    token = torch.tensor([[11], [12], [13]])

    def logits(prefill: Any, step: Any) -> torch.Tensor:
        mask = inputs["attention_mask"]
        with vitcop.prune(model, METHOD):
            with prefill():
                cache = model(**inputs, use_cache=True).past_key_values
            mask, found = torch.cat([mask, mask.new_ones(3, 1)], 1), []
            with step():
                found.append(model(input_ids=token, attention_mask=mask, past_key_values=cache).logits)
            cache.batch_repeat_interleave(2)
            mask = torch.cat([mask, mask.new_ones(3, 1)], 1).repeat_interleave(2, 0)
            with torch.no_grad():
                rows = model(input_ids=token.repeat_interleave(2, 0), attention_mask=mask, past_key_values=cache).logits
        return torch.cat([*found, rows[::2], rows[1::2]]).detach().clone()

    want = logits(torch.enable_grad, torch.enable_grad)  # layers with masks of their own
    for prefill in (torch.no_grad, torch.inference_mode):
        for step in (torch.no_grad, torch.inference_mode):
            assert torch.equal(logits(prefill, step), want)


CHANGES: dict[str, tuple[Any, list[int]]] = {
    "reorder": (changed("reorder_cache", torch.tensor([2, 0, 1])), [2, 0, 1]),
    "select": (changed("batch_select_indices", torch.tensor([0, 2])), [0, 2]),
    "repeat": (changed("batch_repeat_interleave", 2), [0, 0, 1, 1, 2, 2]),
    "copy": (copy.deepcopy, [0, 1, 2]),
    "pickle": (pickled, [0, 1, 2]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_rows_of_a_pruned_cache_decode_as_each_sample_alone(name: str) -> None:
    change, rows = CHANGES[name]
    prompts = [FAMILY.prompt(1), FAMILY.prompt(2), FAMILY.prompt(1, seed=4, text=11)]
    with vitcop.prune(FAMILY.model(), METHOD):
        got = step(prompts, change, rows)
        alone = [step([prompt], lambda cache: cache, [0])[0] for prompt in prompts]
    torch.testing.assert_close(got, torch.stack([alone[row] for row in rows]), atol=2e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [METHOD, ViTCoP(retention=0.3, positions="original"), FastV(retention=0.5)])
def test_packed_samples_are_pruned_as_each_alone(method: Any, attention: str) -> None:
    model = FAMILY.model(2, attention)
    (a, first), (b, second) = FAMILY.prompt(1), FAMILY.prompt(2, seed=4, text=11)
    positions = torch.cat([torch.arange(len(a)), torch.arange(len(b))])[None]
    with vitcop.prune(model, method) as report:
        packed = model(
            input_ids=torch.tensor([a + b]), pixel_values=torch.cat([first, second]), position_ids=positions,
            use_cache=False,
        ).logits[0]  # fmt: skip
        kept = report.stages[-1].tokens_out
        for ids, pixels, got, tokens in ((a, first, packed[: len(a)], kept[0]), (b, second, packed[len(a) :], kept[1])):
            alone = model(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=False).logits[0]
            assert report.stages[-1].tokens_out == [tokens]
            torch.testing.assert_close(got, alone, atol=2e-4, rtol=0)


@torch.no_grad()
def test_packed_samples_with_a_cache_are_refused() -> None:
    from transformers import DynamicCache

    model, (ids, pixels) = FAMILY.model(), FAMILY.prompt(1)
    positions = torch.arange(len(ids)).repeat(2)[None]
    inputs = dict(input_ids=torch.tensor([ids + ids]), pixel_values=torch.cat([pixels, pixels]), position_ids=positions)
    with vitcop.prune(model, METHOD), pytest.raises(NotImplementedError, match="cannot share a KV cache"):
        model(**inputs, past_key_values=DynamicCache(config=model.model.language_model.config))


@torch.no_grad()
@pytest.mark.parametrize("method", [METHOD, VisionOnly(retention=0.3), FastV(retention=0.5)])
def test_a_row_of_padding_alone_changes_nothing(method: Any) -> None:
    model, inputs = FAMILY.model(), FAMILY.batch([FAMILY.prompt(1), FAMILY.prompt(0)])
    inputs["attention_mask"][1] = 0
    with vitcop.prune(model, method):
        got = model(**inputs, **FAMILY.positions(inputs["attention_mask"]), use_cache=False).logits
        alone = model(**FAMILY.batch([FAMILY.prompt(1)]), use_cache=False).logits
    assert got.isfinite().all()
    torch.testing.assert_close(got[:1], alone, atol=2e-4, rtol=0)
