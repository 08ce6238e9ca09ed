"""InternVL under pruning, against a model that recomputes every token without a cache."""

import functools
from typing import Any

import pytest
import tiny_internvl
import torch
from checks import OLD, assert_answers, generate
from test_restore import snapshot
from tiny_internvl import prompt
from tiny_llava import batch

import vitcop
from vitcop import ViTCoP
from vitcop.adapters import adapter_for

METHOD = ViTCoP(retention=0.3)
pytestmark = pytest.mark.family("internvl")


@functools.cache
def internvl(
    qk_norm: bool = False, attention: str = "sdpa", dtype: torch.dtype = torch.float32, feature_layer: int = -1
) -> Any:
    return tiny_internvl.tiny_internvl(qk_norm=qk_norm, attention=attention, dtype=dtype, feature_layer=feature_layer)


VARIANTS: dict[str, tuple[dict[str, Any], int, bool, str]] = {
    "paper": (dict(retention=0.3), 1, False, "sdpa"),
    "two tiles, normed keys": (dict(retention=0.3), 2, True, "eager"),
    "released": (dict(retention=0.3, semantics="released"), 2, False, "sdpa"),
    "attention, original positions": (dict(retention=0.3, saliency="attention", positions="original"), 1, True, "sdpa"),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.feature("greedy")
@pytest.mark.feature("eager attention")
@pytest.mark.feature("several images or videos per prompt")
def test_greedy_equals_recomputing_every_token(name: str) -> None:
    options, tiles, qk_norm, attention = VARIANTS[name]
    model, method, sample = internvl(qk_norm, attention), ViTCoP(**options), prompt(tiles)
    output, report = generate(model, method, batch([sample]), new=3)
    assert report.visual_tokens == [16 * tiles]
    assert report.stages[-1].tokens_out[0] < report.stages[1].tokens_out[0] < report.stages[0].tokens_out[0]
    assert_answers(model, method, [sample], output)


@pytest.mark.skipif(OLD, reason="4.57 has no vision_model to take other layers from")
def test_features_of_an_earlier_layer() -> None:
    model, sample = internvl(feature_layer=-2), prompt(1)
    output, _ = generate(model, METHOD, batch([sample]), new=2)
    assert_answers(model, METHOD, [sample], output)


@pytest.mark.feature("padded batches, left and right")
@pytest.mark.feature("text-only samples")
def test_a_padded_batch_of_0_1_and_2_tiles_equals_each_sample_alone() -> None:
    model = internvl(True)
    prompts = [prompt(1), prompt(0), prompt(2), prompt(1, seed=1, text=9)]
    output, report = generate(model, METHOD, batch(prompts), new=2)
    assert report.visual_tokens == [16, 0, 32, 16]
    assert_answers(model, METHOD, prompts, output)


def test_retaining_everything_equals_the_unpruned_model_bit_for_bit() -> None:
    model, inputs = internvl(True), batch([prompt(1), prompt(2)])
    with torch.no_grad():
        plain = model(**inputs).logits
        before = snapshot(model)
        with vitcop.prune(model, ViTCoP(stage1_ratio=1, stage2_ratio=1, stage3_ratio=1)) as report:
            assert torch.equal(model(**inputs).logits, plain)
    assert report.stages[-1].tokens_out == report.visual_tokens == [16, 32]
    assert snapshot(model) == before


@pytest.mark.parametrize("qk_norm", [False, True])
def test_states_are_what_the_projector_gets(qk_norm: bool) -> None:
    model = internvl(qk_norm)
    adapter: Any = adapter_for(model)
    seen: list[Any] = []
    hooks = list(adapter.watch(seen))
    _, pixels = prompt(2)
    with torch.no_grad():
        features = model.model.get_image_features(pixels)
        projected = adapter.project(seen[0].states())
    for hook in hooks:
        hook.remove()
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    torch.testing.assert_close(projected, features.flatten(0, 1))
    assert seen[0].cls_states() is None


def test_other_features_are_refused() -> None:
    model = tiny_internvl.tiny_internvl()
    model.model.config.vision_feature_select_strategy = "full"
    with pytest.raises(NotImplementedError, match=r"expected 'default' .* got 'full' of -1"):
        vitcop.attach(model, METHOD)
