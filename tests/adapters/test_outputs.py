"""A pruned model returns what transformers returns: plain tensors in its own types, which can be handed on."""

import contextlib
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from checks import OLD
from families import FAMILIES, Family
from torch.nn.parallel.scatter_gather import gather
from torch.utils._pytree import tree_flatten, tree_unflatten

import vitcop
from vitcop import Uniform, ViTCoP

needs_encoded = pytest.mark.skipif(OLD, reason="transformers 4.57 does not take encoded images")


def leaves(output: Any) -> list[Any]:
    found = []
    for value in output.values() if isinstance(output, dict) else output:
        found += leaves(value) if isinstance(value, dict | list | tuple) else [value]
    return found


def test_outputs_are_those_of_the_unpruned_model(family: Family) -> None:
    model, inputs = family.model(), family.batch([family.prompt(1), family.prompt(2)])
    shown = []
    for pruning in (contextlib.nullcontext(), vitcop.prune(model, ViTCoP(retention=1.0))):
        with torch.no_grad(), pruning:
            output = model(**inputs, use_cache=False, return_dict=True)
        flat, spec = tree_flatten(output)
        kept = io.BytesIO()
        torch.save(output, kept)
        kept.seek(0)
        loaded = torch.load(kept, weights_only=False)
        assert type(loaded) is type(output)
        assert torch.equal(tree_unflatten(flat, spec).logits, output.logits)
        assert all(value is None or isinstance(value, torch.Tensor) for value in leaves(output))
        assert set(map(type, flat)) <= {torch.Tensor, type(None), torch.nn.Parameter}
        shown.append((type(output), [str(key) for key in output], spec))
    assert shown[0] == shown[1]


def test_outputs_can_be_gathered(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DataParallel does, whose gathering of tensors wants a GPU: they are put together here."""
    from torch.nn.parallel._functions import Gather

    monkeypatch.setattr(Gather, "apply", lambda device, dim, *parts: torch.cat(parts, dim))
    model, inputs = family.model(), family.batch([family.prompt(1)])
    raised = []
    for pruning in (contextlib.nullcontext(), vitcop.prune(model, ViTCoP(retention=0.3))):
        with torch.no_grad(), pruning:
            output = model(**inputs, use_cache=False)
        try:
            assert torch.equal(gather([output, output], "cpu").logits, torch.cat([output.logits] * 2))
            raised.append(None)
        except Exception as error:
            raised.append(str(error))
    assert raised[0] == raised[1]


@needs_encoded
@pytest.mark.parametrize("beams", [1, 3])
def test_encoded_features_are_known_again(family: Family, beams: int) -> None:
    """What generate() does by itself, done by hand: the same answer; nothing is left of it afterwards."""
    model, prompts = family.model(), [family.prompt(1), family.prompt(2, seed=3)]
    inputs = family.batch(prompts)
    options: Any = dict(max_new_tokens=3, do_sample=False, num_beams=beams)
    handle = vitcop.attach(model, ViTCoP(retention=0.3))
    try:
        want = model.generate(**inputs, **options)
        names = [name for name in inputs if name not in ("input_ids", "attention_mask", "mm_token_type_ids")]
        given = {name: inputs.pop(name) for name in names if name != "image_grid_thw"}
        if "image_grid_thw" in inputs:
            given["image_grid_thw"] = inputs["image_grid_thw"]
        with torch.no_grad():
            encoded = model.model.get_image_features(**given, return_dict=True)
        tokens = weakref.ref(handle.adapter._encoded.get(encoded))
        got = model.generate(**inputs, mm_encoder_outputs={"image": encoded}, **options)
        assert torch.equal(got, want)
        assert tokens() is not None
        del encoded
        gc.collect()
        assert tokens() is None
        assert not handle.adapter._encoded._known
    finally:
        handle.remove()


@needs_encoded
@pytest.mark.parametrize("change", ["other order", "others", "one less", "copied", "of another handle"])
def test_features_that_have_changed_are_refused(family: Family, change: str) -> None:
    model = family.model()
    inputs = family.batch([family.prompt(1), family.prompt(1, seed=3)])
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in inputs}
    given = {name: tensor for name, tensor in inputs.items() if name not in ids}
    ids |= {name: tensor for name, tensor in given.items() if name == "image_grid_thw"}
    with torch.no_grad(), vitcop.prune(model, Uniform(retention=0.5)) as report:
        encoded = model.model.get_image_features(**given, return_dict=True)
        features = encoded.pooler_output
        if change == "other order":
            encoded.pooler_output = features[[1, 0]] if isinstance(features, torch.Tensor) else [*features][::-1]
        elif change == "others":
            encoded.pooler_output = [2 * f for f in features]
        elif change == "one less":
            encoded.pooler_output = features[:1]
        elif change == "copied":
            encoded = type(encoded)(pooler_output=[f.clone() for f in features])
        if change == "of another handle":
            with pytest.raises(ValueError, match="already has a pruning method"):
                vitcop.attach(model, Uniform(retention=0.5))
        else:
            with pytest.raises(NotImplementedError, match="mm_encoder_outputs"):
                model(**ids, mm_encoder_outputs={"image": encoded})
            assert report.stages == []
    if change == "of another handle":
        with (
            torch.no_grad(),
            vitcop.prune(model, Uniform(retention=0.5)),
            pytest.raises(NotImplementedError, match="mm_encoder_outputs"),
        ):
            model(**ids, mm_encoder_outputs={"image": encoded})


@needs_encoded
def test_a_pruned_assistant_is_told_apart() -> None:
    """It gets the features of the model that it assists, whose tokens it has not seen."""
    family = FAMILIES["llava"]
    model, assistant = family.model(), family.build(layers=3, seed=1)
    assistant.generation_config.num_assistant_tokens = 2
    inputs = family.batch([family.prompt(1)])
    with (
        vitcop.prune(assistant, ViTCoP(retention=0.5)),
        pytest.raises(ValueError, match="prune the model that it assists"),
    ):
        model.generate(**inputs, assistant_model=assistant, max_new_tokens=4, do_sample=False)
