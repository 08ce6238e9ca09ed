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
from vitcop import Uniform, VisionOnly, ViTCoP

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


def packed(*samples: Any) -> dict[str, Any]:
    """As `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` gives them."""
    ids = [ids for ids, _ in samples]
    bounds = torch.tensor([0, *(len(each) for each in ids)]).cumsum(0).int()
    longest = max(map(len, ids))
    return dict(
        input_ids=torch.cat(list(map(torch.tensor, ids)))[None],
        pixel_values=torch.cat([pixels for _, pixels in samples]),
        position_ids=torch.cat([torch.arange(len(each)) for each in ids])[None], use_cache=False,
        cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=longest, max_length_k=longest,
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("method", [ViTCoP(retention=0.3), VisionOnly(retention=0.3), Uniform(retention=0.5)])
@pytest.mark.parametrize("count", [1, 2])
def test_lengths_of_packed_samples(model: Any, method: Any, count: int) -> None:
    """Kernels get none that are of the unpruned row, also where the row is one sample."""
    samples = [prompt(1), prompt(2, seed=4)][:count]
    given: list[Any] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        given.extend(name for name in kwargs if "cu_seq" in name or "max_length" in name)

    hook = model.model.language_model.layers[-1].self_attn.register_forward_pre_hook(look, with_kwargs=True)
    with vitcop.prune(model, method):
        got = model(**packed(*samples)).logits[0]
        alone = [model(input_ids=torch.tensor([ids]), pixel_values=p, use_cache=False).logits[0] for ids, p in samples]
    hook.remove()
    torch.testing.assert_close(got, torch.cat(alone), atol=TOLERANCE, rtol=0)
    assert not given


@torch.no_grad()
@pytest.mark.parametrize("change", ["no position ids", "other position ids", "cached"])
def test_lengths_that_position_ids_do_not_tell_are_refused(model: Any, change: str) -> None:
    inputs = packed(prompt(1), prompt(1, seed=4))
    if change == "no position ids":
        del inputs["position_ids"]
    elif change == "other position ids":
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
    else:  # where only falls count
        inputs["position_ids"], inputs["use_cache"] = inputs["position_ids"].clone(), True
        inputs["position_ids"][0, len(prompt(1)[0]) :] += 100
    with vitcop.prune(model, ViTCoP(retention=0.3)) as report, pytest.raises(NotImplementedError, match="cu_seq_lens"):
        model(**inputs)
    assert report.stages == []
