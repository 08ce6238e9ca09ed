"""Nested and repeated blocks, copies and pickles of a pruned model, caches that outlive the pruning."""

import copy
import functools
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import OLD, TOLERANCE
from families import Family, parameters
from fault_injection import answer, installed, snapshot
from torch import nn

import vitcop

OPTIONS = {"retention": 0.3, "deep_layer": 3}


@pytest.fixture(params=parameters("llava", "llava_next", "qwen2_5_vl", "internvl"))
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def model(family: Family) -> Any:
    model = family.build(layers=4)
    answer(model, family.batch([family.prompt(1)]))  # transformers installs hooks of its own at the first forward
    return model


@pytest.fixture
def inputs(family: Family) -> dict[str, Any]:
    return family.batch([family.prompt(1)])


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_a_nested_block_is_refused_and_leaves_the_outer_one(family: Family, model: Any, inputs: Any) -> None:
    before = snapshot(model)
    for inner in (model, model.model):  # the second is part of the first
        with vitcop.prune(model, family.method(**OPTIONS)):
            within, expected = snapshot(model), answer(model, inputs)
            with (
                pytest.raises(ValueError, match="already has a pruning method"),
                vitcop.prune(inner, family.method(retention=0.6, deep_layer=3)),
            ):
                pass
            assert snapshot(model) == within
            assert torch.equal(answer(model, inputs), expected)
        assert snapshot(model) == before


def test_a_block_can_be_entered_again_but_not_within_itself(family: Family, model: Any, inputs: Any) -> None:
    before, block = snapshot(model), vitcop.prune(model, family.method(**OPTIONS))
    answers = []
    for _ in range(2):
        with block as report:
            answers.append(answer(model, inputs))
            with pytest.raises(ValueError, match="already has a pruning method"), block:
                pass
            answers.append(answer(model, inputs))
            assert len(report.stages) == 3
        assert snapshot(model) == before
    assert all(torch.equal(a, answers[0]) for a in answers)


def test_a_block_decorates_a_function(family: Family, model: Any, inputs: Any) -> None:
    with vitcop.prune(model, family.method(**OPTIONS)):
        expected = answer(model, inputs)
    before = snapshot(model)
    pruned = vitcop.prune(model, family.method(**OPTIONS))(answer)
    assert torch.equal(pruned(model, inputs), expected)
    assert snapshot(model) == before


def test_handles_removed_in_any_order_and_twice(family: Family, model: Any, inputs: Any) -> None:
    other, before, plain = copy.deepcopy(model), snapshot(model), answer(model, inputs)
    first = vitcop.attach(model, family.method(**OPTIONS))
    second = vitcop.attach(other, family.method(**OPTIONS))
    expected = answer(other, inputs)
    first.remove()
    first.remove()
    assert snapshot(model) == before
    assert torch.equal(answer(other, inputs), expected)
    third = vitcop.attach(model, family.method(**OPTIONS))
    first.remove()  # has nothing to do with the third
    assert torch.equal(answer(model, inputs), expected)
    third.remove()
    second.remove()
    assert snapshot(model) == before
    assert torch.equal(answer(other, inputs), plain)


def test_what_others_put_in_meanwhile_stays(family: Family, model: Any, inputs: Any) -> None:
    """Hooks, and methods wrapped once more around ours, taken out after us."""
    owner, called = model.model, []
    plain, before = answer(model, inputs), snapshot(model)
    handle = vitcop.attach(model, family.method(**OPTIONS))
    hooks = [
        layer.register_forward_pre_hook(lambda *_: called.append("hook")) for layer in owner.language_model.layers[:2]
    ]
    ours = {site.key: site.original for site in installed(model, before) if site.holder is vars(owner)}

    def around(wrapped: Any) -> Any:
        # generate() reads the signature.
        return functools.wraps(wrapped)(lambda *args, **kwargs: (called.append("method"), wrapped(*args, **kwargs))[1])

    for name, replaced in ours.items():
        setattr(owner, name, around(replaced))
    handle.remove()
    assert torch.equal(answer(model, inputs), plain)
    assert "hook" in called and ("method" in called or not ours)
    for hook in hooks:
        hook.remove()
    for name in ours:
        delattr(owner, name)
    assert snapshot(model) == before


# -- copies ------------------------------------------------------------------------------------------------------------

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_pruned_model_is_refused(family: Family, model: Any, inputs: Any, way: str) -> None:
    """A copy would hold hooks of this model, which nothing takes out again."""
    before, parts = snapshot(model), [model, model.model, model.model.language_model, model.get_submodule("lm_head")]
    parts += [model.model.language_model.layers[0], getattr(model.model, family.tower)]
    with vitcop.prune(model, family.method(**OPTIONS)):
        expected = answer(model, inputs)
        for part in parts:
            if part in (model.lm_head, model.model.language_model.layers[0]):
                COPIES[way](part)  # no hooks between forwards
                continue
            with pytest.raises(TypeError, match="model: expected one that is not being pruned, to copy or pickle"):
                COPIES[way](part)
        assert torch.equal(answer(model, inputs), expected)
    assert snapshot(model) == before


def test_nothing_that_is_installed_can_be_copied(family: Family, model: Any) -> None:
    """So that no part of the model with a hook in it can be."""
    before = snapshot(model)
    with vitcop.prune(model, family.method(**OPTIONS)):
        sites = installed(model, before)
        assert len(sites) > 8
        for site in sites:
            for way in (copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="not being pruned, to copy or pickle"):
                    way(site.original)


def test_a_copy_made_afterwards_is_a_model_of_its_own(family: Family, model: Any, inputs: Any) -> None:
    plain = answer(model, inputs)
    with vitcop.prune(model, family.method(**OPTIONS)):
        pruned = answer(model, inputs)
    copied = copy.deepcopy(model)
    with vitcop.prune(model, family.method(**OPTIONS)):
        assert torch.equal(answer(copied, inputs), plain)
        assert torch.equal(answer(model, inputs), pruned)
    with vitcop.prune(copied, family.method(**OPTIONS)):
        assert torch.equal(answer(copied, inputs), pruned)
        assert torch.equal(answer(model, inputs), plain)


def test_the_weights_of_a_pruned_model_are_saved_as_ever(
    family: Family, model: Any, inputs: Any, tmp_path: Path
) -> None:
    keys = list(model.state_dict())
    with vitcop.prune(model, family.method(**OPTIONS)):
        held = model.state_dict()
        model.save_pretrained(tmp_path)
        expected = answer(model, inputs)
    assert list(held) == keys
    loaded = type(model).from_pretrained(tmp_path, use_safetensors=True).eval()
    loaded.generation_config = model.generation_config
    with vitcop.prune(loaded, family.method(**OPTIONS)):
        # The file's tensors lie elsewhere than the model's: aligned otherwise, products are summed in another order.
        torch.testing.assert_close(answer(loaded, inputs), expected, atol=TOLERANCE, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(held.values(), loaded.state_dict().values(), strict=True))


# -- caches ------------------------------------------------------------------------------------------------------------


def step(model: Any, cache: Any, token: int = 7) -> torch.Tensor:
    with torch.no_grad():
        name = "past_key_values" if OLD else _cache_argument(model)
        return model(input_ids=torch.tensor([[token]]), **{name: cache}).logits


def _cache_argument(model: nn.Module) -> str:
    from vitcop.engine.cache import name_for

    return name_for(model)


def prefill(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs, use_cache=True).past_key_values


def test_a_pruned_cache_is_refused_by_an_unpruned_model(family: Family, model: Any, inputs: Any) -> None:
    """Positions and masks would be those of the prompt's length: a wrong answer, and no error."""
    with vitcop.prune(model, family.method(**OPTIONS)):
        cache = prefill(model, inputs)
        copied = copy.deepcopy(cache)
        expected = step(model, copy.deepcopy(cache))
    for held in (cache, copied):
        length = held.layers[0].keys.shape[2]
        with pytest.raises(RuntimeError, match="can be continued only under pruning"):
            step(model, held)
        assert held.layers[0].keys.shape[2] == length
    with vitcop.prune(model, family.method(**OPTIONS)):  # it goes on where there are hooks again
        assert torch.equal(step(model, cache), expected)
    with pytest.raises(RuntimeError, match="can be continued only under pruning"):
        step(model, cache)
    cache.reset()
    step(model, cache)


def test_an_unpruned_cache_of_before_goes_on(family: Family, model: Any, inputs: Any) -> None:
    cache, again = prefill(model, inputs), prefill(model, inputs)
    expected = step(model, again)
    with vitcop.prune(model, family.method(**OPTIONS)):
        assert torch.equal(step(model, cache), expected)
    step(model, cache)
