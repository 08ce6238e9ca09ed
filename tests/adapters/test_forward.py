"""forward() under pruning: without a cache, with labels, right padding, turn by turn, and when nothing is pruned."""

import copy
from typing import Any

import pytest
import torch
from checks import OLD, TOLERANCE, expected_logits, generate
from families import FAMILIES, Family, parameters
from slow_llava import Turn, logits
from tiny_llava import IMAGE, VOCABULARY, batch, prompt

import vitcop
from vitcop import ViTCoP

pytestmark = pytest.mark.family("llava")


def everything(model: Any, method: Any, turns: list[Turn]) -> torch.Tensor:
    with torch.no_grad():
        return logits(model, method, turns, [])


@pytest.mark.parametrize("retention", [1.0, 0.9])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_retaining_everything_equals_the_unpruned_model_bit_for_bit(
    family: Family, attention: str, retention: float
) -> None:
    model = family.model(2, attention)
    method = ViTCoP(retention=1.0) if retention == 1 else ViTCoP(stage1_ratio=1, stage2_ratio=1, stage3_ratio=1)
    for prompts in ([family.prompt(1)], family.prompts()):
        inputs = family.batch(prompts)
        options = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
        plain = model.generate(**inputs, **options)
        output, report = generate(model, method, inputs)
        assert torch.equal(plain.sequences, output.sequences)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, output.logits, strict=True))
        assert report.stages[-1].tokens_out == report.visual_tokens


@pytest.mark.feature("padded batches, left and right")
@pytest.mark.parametrize("semantics", ["paper", "released"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_without_a_cache_keeps_the_length_and_zeroes_what_was_pruned(
    family: Family, side: str, semantics: str
) -> None:
    model, method = family.model(2), family.method(retention=0.3, semantics=semantics)
    prompts = family.prompts()
    inputs = family.batch(prompts, side)
    with vitcop.prune(model, method), torch.no_grad():
        output = model(**inputs, **family.positions(inputs["attention_mask"]), use_cache=False)
    assert output.logits.shape == (*inputs["input_ids"].shape, VOCABULARY)
    for sample, (ids, pixels) in enumerate(prompts):
        got = output.logits[sample][inputs["attention_mask"][sample].bool()]
        expected = everything(model, method, [Turn(ids, pixels)])
        alive = ~expected.isnan().any(-1)
        assert alive.sum() < len(ids) or not family.count(ids)
        torch.testing.assert_close(got[alive], expected[alive], atol=TOLERANCE, rtol=0)
        assert (got[~alive] == 0).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_decoding_by_hand_after_right_padding(llava: Any, attention: str) -> None:
    model, method = llava(4, attention), ViTCoP(retention=0.3)
    prompts = [prompt(1), prompt(2)]
    inputs = batch(prompts, "right")
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    said = torch.tensor([[11, 12], [13, 14]])
    with vitcop.prune(model, method), torch.no_grad():
        cache = model(**inputs, position_ids=positions, use_cache=True).past_key_values
        steps = []
        for step in range(2):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            token = said[:, step : step + 1]
            at = mask.sum(1, keepdim=True) - 1
            steps.append(
                model(input_ids=token, attention_mask=mask, position_ids=at, past_key_values=cache).logits[:, -1]
            )
    for sample, (ids, pixels) in enumerate(prompts):
        expected = everything(model, method, [Turn([*ids, *said[sample].tolist()], pixels)])[-2:]
        # The reference prunes the prompt as it was: the two tokens said afterwards are text behind it.
        got = torch.stack([step[sample] for step in steps])
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.feature("several turns, one cache")
@pytest.mark.feature("a new image in a later turn")
@pytest.mark.parametrize("semantics", ["paper", "released"])
@pytest.mark.parametrize("family", parameters(*(f.name for f in FAMILIES.values() if f.counts_tokens)), indirect=True)
def test_turns_with_images_reuse_one_cache(family: Family, semantics: str) -> None:
    """Image, text, images: each turn prunes its own images alone and sees the earlier ones as they were left."""
    model, method = family.model(2), ViTCoP(retention=0.3, semantics=semantics)
    prompts = family.prompts()
    turns = [Turn(*prompts[0]), Turn([11, 12, 13]), Turn(*prompts[-1]), Turn(*prompts[2]), Turn([14])]
    got, cache = [], None
    with vitcop.prune(model, method) as report, torch.no_grad():
        for turn in turns:
            inputs = family.batch([(turn.ids, turn.pixels)])
            inputs.pop("attention_mask")
            output = model(**inputs, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            got.append(output.logits[0])
        assert report.visual_tokens == [family.count(turns[3].ids)]  # of the latest prefill with images
        assert cache.get_seq_length() == sum(len(turn.ids) for turn in turns)
    expected = everything(model, method, turns)
    alive = ~expected.isnan().any(-1)
    torch.testing.assert_close(torch.cat(got)[alive], expected[alive], atol=TOLERANCE, rtol=0)


def test_a_padded_batch_takes_another_turn(llava: Any) -> None:
    """Padding of both turns, a new image in one sample only."""
    model, method = llava(), ViTCoP(retention=0.4)
    first = [prompt(1), prompt(2), prompt(0)]
    second = [prompt(0, seed=7), prompt(1, seed=8), prompt(0, seed=9, text=2)]
    one, two = batch(first), batch(second)
    with vitcop.prune(model, method), torch.no_grad():
        mask = one["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = model(**one, position_ids=positions, use_cache=True).past_key_values
        mask = torch.cat([mask, two["attention_mask"]], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -two["input_ids"].shape[1] :]
        output = model(**{**two, "attention_mask": mask}, position_ids=positions, past_key_values=cache)
    for sample in range(3):
        expected = everything(model, method, [Turn(*first[sample]), Turn(*second[sample])])[-1]
        torch.testing.assert_close(output.logits[sample, -1], expected, atol=TOLERANCE, rtol=0)


def test_an_image_after_a_turn_that_was_not_pruned(llava: Any) -> None:
    model, method = llava(), ViTCoP(retention=0.3)
    turns = [Turn([1, 11, 12, 13]), Turn(*prompt(1))]
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([turns[0].ids]), use_cache=True).past_key_values
        with vitcop.prune(model, method):
            output = model(input_ids=torch.tensor([turns[1].ids]), pixel_values=turns[1].pixels, past_key_values=cache)
    expected = everything(model, method, turns)[-1]
    torch.testing.assert_close(output.logits[0, -1], expected, atol=TOLERANCE, rtol=0)


def test_a_pruned_cache_can_be_copied_and_reset(llava: Any) -> None:
    model, method = llava(), ViTCoP(retention=0.3)
    ids, pixels = prompt(1)
    token = {"input_ids": torch.tensor([[11]])}
    with vitcop.prune(model, method), torch.no_grad():
        cache = model(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=True).past_key_values
        twin = copy.deepcopy(cache)
        a = model(**token, past_key_values=cache).logits
        b = model(**token, past_key_values=twin).logits
        assert torch.equal(a, b)
        assert cache.get_seq_length() == twin.get_seq_length() == len(ids) + 1
        with pytest.raises(ValueError, match="cannot crop to"):
            cache.crop(-len(ids))
        cache.reset()
        assert not any("vitcop" in name for name in vars(cache))


@pytest.mark.feature("labels, loss and gradients")
def test_labels_give_a_loss_and_gradients_flow_through_what_survives(llava: Any) -> None:
    model, method = llava(2), ViTCoP(retention=0.3)
    inputs = batch([prompt(1), prompt(2)])
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0), -100)
    projector = model.model.multi_modal_projector.linear_2.weight
    with vitcop.prune(model, method):
        output = model(**inputs, labels=labels)
        (grad,) = torch.autograd.grad(output.loss, projector)
    shifted = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, shifted)
    assert grad.isfinite().all() and (grad != 0).any()
    assert len(model._forward_hooks) == 0


def test_the_gradient_is_the_derivative(llava: Any) -> None:
    """Along a direction small enough not to change the choice of tokens."""
    model, method = copy.deepcopy(llava()).double(), ViTCoP(retention=0.3)
    inputs = batch([prompt(1)], dtype=torch.float64)
    bias = model.model.multi_modal_projector.linear_2.bias
    direction = torch.randn(bias.shape, generator=torch.Generator().manual_seed(1), dtype=bias.dtype)

    def value(step: float) -> torch.Tensor:
        with torch.no_grad():
            bias.add_(step * direction)
        result = model(**inputs, use_cache=False).logits[0, -1].logsumexp(-1)
        if not step:
            return result
        with torch.no_grad():
            bias.sub_(step * direction)
        return result.detach()

    with vitcop.prune(model, method):
        (grad,) = torch.autograd.grad(value(0.0), bias)
        slope = (value(1e-3) - value(-1e-3)) / 2e-3
    # RMSNorm computes in float32 whatever comes in: 1e-7 of noise on values of 10, divided by the step.
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-2, atol=1e-2)


@pytest.mark.feature("logits_to_keep")
def test_logits_to_keep(family: Family) -> None:
    model, inputs = family.model(), family.batch([family.prompt(1), family.prompt(2)])
    with vitcop.prune(model, ViTCoP(retention=0.3)), torch.no_grad():
        full = model(**inputs).logits
        last = model(**inputs, logits_to_keep=2)
    torch.testing.assert_close(full[:, -2:], last.logits)


@pytest.mark.feature("gradient checkpointing")
@pytest.mark.skipif(OLD, reason="refused before transformers 5, see test_refusals")
def test_gradient_checkpointing_changes_nothing(llava: Any) -> None:
    model, method = copy.deepcopy(llava()), ViTCoP(retention=0.3)
    inputs = batch([prompt(1)])
    weight = model.model.multi_modal_projector.linear_2.weight

    def gradient() -> torch.Tensor:
        with vitcop.prune(model, method):
            loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)).loss
            return torch.autograd.grad(loss, weight)[0]

    plain = gradient()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradient(), plain, rtol=1e-4, atol=1e-6)


def test_expected_logits_helper_reads_the_right_rows(llava: Any) -> None:
    """The helper of the generate tests, against the plain unpruned model."""
    model = llava()
    ids, pixels = prompt(1)
    answer = [11, 12]
    with torch.no_grad():
        plain = model(input_ids=torch.tensor([[*ids, *answer]]), pixel_values=pixels).logits[0, -3:-1]
    expected = expected_logits(model, ViTCoP(retention=1.0), [Turn(ids, pixels)], answer)
    torch.testing.assert_close(plain, expected, atol=TOLERANCE, rtol=0)
