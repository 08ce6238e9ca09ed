"""Ways of calling generate() that draw several tokens at a time, or start from something else than token ids."""

from typing import Any

import pytest
import torch
from checks import NEW, OLD, TOLERANCE, generate
from families import FAMILIES, Family, parameters
from slow_llava import Turn
from tiny_llava import PAD
from torch import Tensor

import vitcop
from vitcop import ViTCoP

METHOD = ViTCoP(retention=0.3)
NO_MINIMUM: dict[str, Any] = dict(eos_token_id=PAD, min_new_tokens=None)  # 4.57 assists without one


def assert_drawn_from_the_reference(
    family: Family, model: Any, sample: Any, output: Any, tolerance: float = TOLERANCE
) -> None:
    """Every logit that an answer was drawn from, of a batch of one."""
    got = torch.stack(output.logits, dim=1)[0]
    answer = output.sequences[0, -got.shape[0] :].tolist()
    with torch.no_grad():
        expected = family.logits(model, METHOD, [Turn(*sample)], answer)[-len(answer) - 1 : -1]
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


@pytest.fixture
def forwards(family: Family) -> Any:
    """Lengths of what the decoder of the family's shared model was given, while a test runs."""
    lengths: list[int] = []
    decoder = family.model().model.language_model
    hook = decoder.register_forward_pre_hook(
        lambda m, a, k: lengths.append(k["inputs_embeds"].shape[1]), with_kwargs=True
    )
    yield lengths
    hook.remove()


@pytest.fixture
def assistant(family: Family) -> Any:
    """Close enough to the family's shared model that some of its candidates are taken."""
    model, assistant = family.model(), family.build(layers=4, key_heads=4)
    with torch.no_grad():
        assistant.load_state_dict(model.state_dict(), strict=False)
    assistant.generation_config.num_assistant_tokens = 3
    return assistant


@pytest.mark.feature("assisted decoding")
@pytest.mark.parametrize("sampling", [False, True])
def test_assisted_by_another_model(family: Family, forwards: list[int], assistant: Any, sampling: bool) -> None:
    model, sample = family.model(), family.prompt(1)
    options: dict[str, Any] = dict(assistant_model=assistant, **NO_MINIMUM)
    if sampling:
        options |= dict(do_sample=True, top_k=0, top_p=1.0)
    output, report = generate(model, METHOD, family.batch([sample]), new=8, **options)
    assert len(report.stages) == 3
    assert forwards[0] > len(sample[0])  # candidates were part of the prefill
    assert_drawn_from_the_reference(family, model, sample, output)


@pytest.mark.feature("assisted decoding")
@pytest.mark.feature(
    "assisted decoding", "upstream bug", "transformers 5.2x keeps the images from an assistant: pruning it is refused"
)
def test_an_assistant_that_is_pruned_too(family: Family, assistant: Any) -> None:
    model, sample = family.model(), family.prompt(1)
    shown: list[bool] = []
    names = ("pixel_values", "mm_encoder_outputs")
    hook = assistant.model.register_forward_pre_hook(
        lambda m, a, k: shown.append(any(k.get(name) is not None for name in names)), with_kwargs=True
    )
    generate(model, METHOD, family.batch([sample]), new=2, assistant_model=assistant, **NO_MINIMUM)
    hook.remove()
    with vitcop.prune(assistant, ViTCoP(retention=0.5)) as report:
        if not shown[0]:
            with pytest.raises(ValueError, match=f"got {family.image_tokens} in input_ids but no images"):
                generate(model, METHOD, family.batch([sample]), new=2, assistant_model=assistant, **NO_MINIMUM)
            return
        output, _ = generate(model, METHOD, family.batch([sample]), new=8, assistant_model=assistant, **NO_MINIMUM)
        assert len(report.stages) == 3
    assert_drawn_from_the_reference(family, model, sample, output)


@pytest.mark.feature("prompt lookup")
def test_prompt_lookup(family: Family, forwards: list[int]) -> None:
    model, (ids, images) = family.model(), family.prompt(2)
    greedy, _ = generate(model, METHOD, family.batch([(ids, images)]), new=6, eos_token_id=PAD)
    ids = [*ids, *greedy.sequences[0, -6:].tolist(), *ids[-3:]]  # so that some of the candidates are taken
    forwards.clear()
    output, _ = generate(
        model, METHOD, family.batch([(ids, images)]), new=10, eos_token_id=PAD, prompt_lookup_num_tokens=3
    )
    assert len(forwards) > 1 and (forwards[0] > len(ids) or max(forwards[1:]) > 1)  # several candidates at once
    assert_drawn_from_the_reference(family, model, (ids, images), output)


def can_collect_states(family: Family) -> bool:
    return not (OLD and family.name == "qwen3_vl")


@pytest.mark.skipif(not OLD, reason="transformers 5 collects them once")
@pytest.mark.feature("output_hidden_states", "refused", "transformers before 5")
@pytest.mark.parametrize("family", parameters("qwen3_vl"), indirect=True)
def test_hidden_states_that_are_collected_twice_are_refused(family: Family) -> None:
    # Not the shared one: 4.57 leaves what it has wrapped to collect them in place, whatever is raised.
    model, inputs = family.build(layers=4), family.batch([family.prompt(1)])
    with vitcop.prune(model, METHOD), torch.no_grad():
        with pytest.raises(NotImplementedError, match="output_hidden_states: expected False for Qwen3-VL"):
            model(**inputs, output_hidden_states=True)
        model(**inputs)


@pytest.mark.feature("output_hidden_states")
@pytest.mark.parametrize("semantics", ["paper", "released"])
def test_hidden_states_have_the_prompts_length(family: Family, semantics: str) -> None:
    """Every one is [B, prompt, C], the place of a token is its place in the prompt, and 0 says that it is gone."""
    if not can_collect_states(family):
        pytest.skip(
            "transformers 4.57 collects them around Qwen3-VL's decoder: refused, which test_calls_generate.py tests"
        )
    model, method = family.model(2), family.method(retention=0.3, semantics=semantics)
    prompts = [family.prompt(1), family.prompt(2), family.prompt(0)]
    inputs = family.batch(prompts)
    output, _ = generate(model, method, inputs, new=2, output_hidden_states=True)
    prefill, decoding = output.hidden_states
    assert len(prefill) == len(decoding) == 1 + len(model.model.language_model.layers)
    stacked = torch.stack(prefill)
    assert stacked.shape[1:3] == inputs["input_ids"].shape
    assert all(state.shape[:2] == (3, 1) for state in decoding)
    for sample, (ids, images) in enumerate(prompts):
        states: list[dict[int, Tensor]] = []
        with torch.no_grad():
            family.logits(model, method, [Turn(ids, images)], [], states=states)
        got = stacked[:, sample, -len(ids) :]
        assert len(states) == len(got)
        for mine, truth in zip(got, states, strict=True):
            alive = torch.tensor([column in truth for column in range(len(ids))])
            assert torch.equal((mine != 0).any(-1), alive)
            torch.testing.assert_close(mine[alive], torch.stack(list(truth.values())), atol=TOLERANCE, rtol=0)
        left = [sum(column in truth for column in range(len(ids))) for truth in states]
        assert (len(set(left)) == 3 or not len(images)) and left == sorted(left, reverse=True)


@pytest.mark.feature("output_hidden_states")
def test_hidden_states_of_forward(family: Family) -> None:
    if not can_collect_states(family):
        pytest.skip(
            "transformers 4.57 collects them around Qwen3-VL's decoder: refused, which test_calls_generate.py tests"
        )
    model, inputs = family.model(), family.batch([family.prompt(1)])
    with vitcop.prune(model, METHOD), torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        body = model.model(**inputs, output_hidden_states=True)
    assert {state.shape[1] for state in output.hidden_states} == {inputs["input_ids"].shape[1]}
    assert torch.equal(body.hidden_states[-1], body.last_hidden_state)
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)


def called(model: Any, **inputs: Any) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and what the decoder was given for them."""
    seen: list[dict[str, Any]] = []
    hook = model.model.language_model.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    with torch.no_grad():
        logits = model(**inputs).logits
    hook.remove()
    return logits, seen[0]


EMBEDDED = [
    *(
        pytest.param(*p.values, call, id=f"{p.id}-{call}", marks=[*p.marks, pytest.mark.feature("inputs_embeds")])
        for p in parameters()
        for call in ("forward", "generate")
        if call == "forward" or p.values[0].counts_tokens
    )
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "call"), EMBEDDED, indirect=["family"])
def test_embeddings_beside_images(family: Family, call: str, dtype: torch.dtype) -> None:
    """The placeholders are found by their embedding, as transformers finds them. Without token ids, Qwen's models know
    no positions of three axes: the caller gives them."""
    model, prompts = family.model(dtype=dtype), [family.prompt(1), family.prompt(0), family.prompt(2)]
    inputs = family.batch(prompts, dtype=dtype)
    embedded = {k: v for k, v in inputs.items() if k != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"]).detach()
    if call == "generate":
        given, _ = generate(model, METHOD, inputs)
        output, report = generate(model, METHOD, embedded)
        assert torch.equal(output.sequences[:, -NEW:], given.sequences[:, -NEW:])
        assert all(torch.equal(a, b) for a, b in zip(output.logits, given.logits, strict=True))
    else:
        _, given = called(model, **inputs)
        positions = {} if family.counts_tokens else {"position_ids": given["position_ids"]}
        with vitcop.prune(model, METHOD) as report, torch.no_grad():
            assert torch.equal(model(**embedded, **positions).logits, model(**inputs).logits)
    assert report.visual_tokens == [family.count(ids) for ids, _ in prompts]


@pytest.mark.feature(
    "inputs_embeds", "upstream bug", "generate() from embeddings numbers images like text, with and without vitcop"
)
@pytest.mark.parametrize(
    "family", parameters(*(f.name for f in FAMILIES.values() if not f.counts_tokens)), indirect=True
)
def test_generating_from_embeddings_has_other_positions(family: Family) -> None:
    model, seen = family.model(), []
    inputs = family.batch([family.prompt(1)])
    embedded = {k: v for k, v in inputs.items() if k != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"]).detach()
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda m, a, k: seen.append((*a, *k.values())[1]), with_kwargs=True
    )
    for given in (inputs, embedded):
        model.generate(**given, max_new_tokens=1, do_sample=False)
    hook.remove()
    assert not torch.equal(seen[0][-3:], seen[1][-3:])


def test_embeddings_without_placeholders_are_refused(family: Family) -> None:
    model = family.model()
    embeds = model.get_input_embeddings()(torch.tensor([[1, 2, 3]])).detach()
    inputs = family.batch([family.prompt(1)])
    del inputs["input_ids"], inputs["attention_mask"]
    with vitcop.prune(model, METHOD), torch.no_grad(), pytest.raises(ValueError, match="got none in input_ids"):
        model(inputs_embeds=embeds, **inputs)


def test_embeddings_that_hold_the_images_are_not_pruned(family: Family) -> None:
    """What the caller has put into the embeddings cannot be told from text: it passes, and the report says nothing."""
    model, inputs = family.model(), family.batch([family.prompt(1)])
    plain, given = called(model, **inputs)
    embedded = {"inputs_embeds": given["inputs_embeds"]}
    if not family.counts_tokens:
        embedded["position_ids"] = given["position_ids"]
    with torch.no_grad():
        again = model(**embedded).logits
        assert torch.equal(again, plain) or family.name == "qwen3_vl"  # which adds features further on
        with vitcop.prune(model, METHOD) as report:
            assert torch.equal(model(**embedded).logits, again)
    assert report.stages == []


@pytest.mark.feature("sampling")
def test_several_samples_of_each_prompt(family: Family) -> None:
    model, prompts = family.model(), [family.prompt(1), family.prompt(1, seed=3)]
    torch.manual_seed(2)
    output, _ = generate(
        model, METHOD, family.batch(prompts), do_sample=True, num_return_sequences=2, top_k=0, top_p=1.0
    )
    assert output.sequences.shape[0] == 4
    got = torch.stack(output.logits, dim=1)
    for row in range(4):
        answer = output.sequences[row, -NEW:].tolist()
        with torch.no_grad():
            expected = family.logits(model, METHOD, [Turn(*prompts[row // 2])], answer)[-NEW - 1 : -1]
        torch.testing.assert_close(got[row], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.skipif(OLD, reason="transformers 4.57 splits no prefill of images")
def test_a_prefill_in_chunks_is_refused(family: Family) -> None:
    model = family.model()
    with vitcop.prune(model, METHOD), pytest.raises(NotImplementedError, match="prefill_chunk_size"):
        model.generate(**family.batch([family.prompt(1)]), max_new_tokens=2, prefill_chunk_size=8)
