"""Options of a call win over the configuration: what is watched is what the call uses."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from checks import OLD, generate
from families import FAMILIES, Family

import vitcop
from vitcop import VisionZip, ViTCoP

CHOOSING = [name for name in FAMILIES if "qwen" not in name]


@pytest.fixture(params=CHOOSING)
def chooser(request: pytest.FixtureRequest) -> Family:
    """A family whose calls can say which layer of the tower is used."""
    if OLD and request.param == "internvl":
        pytest.skip("transformers 4.57's InternVL takes the last layer alone")
    return FAMILIES[request.param]


def configured(family: Family, layer: Any) -> Any:
    """The same weights, told by the configuration."""
    model = family.build(layers=8)
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "vision_feature_layer"):
            module.config.vision_feature_layer = layer
    return model


def other_layers(model: Any) -> list[int]:
    """One counted from the front, and one from the end."""
    depth, configured = model.config.vision_config.num_hidden_layers, model.config.vision_feature_layer
    others = [n for n in range(1, depth + 1) if n not in (configured, configured + depth + 1)]
    return [others[0], others[-1] - depth - 1]


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("way", ["forward", "generate"])
def test_a_layer_given_in_the_call_is_watched(chooser: Family, end: int, way: str) -> None:
    layer = other_layers(chooser.model())[end]
    inputs = chooser.batch([chooser.prompt(1), chooser.prompt(2)])
    method = ViTCoP(retention=0.3)
    model, truth = chooser.build(layers=8), configured(chooser, layer)

    def kept(model: Any, **options: Any) -> list[Any]:
        if way == "generate":
            _, report = generate(model, method, inputs, new=1, **options)
        else:
            with torch.no_grad(), vitcop.prune(model, method) as report:
                model(**inputs, **options)
        return [[row.tolist() for row in stage.kept] for stage in report.stages]

    want, at_configuration = kept(truth), kept(model)
    assert kept(model, vision_feature_layer=layer) == want
    assert kept(model) == at_configuration  # and not from then on
    assert want != at_configuration


@pytest.mark.parametrize("layer", [[-2], [-3]])
def test_a_list_of_one_layer_is_that_layer(layer: list[int]) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(layers=8), family.batch([family.prompt(1)])
    with torch.no_grad(), vitcop.prune(model, VisionZip(retain=8)):
        got = model(**inputs, vision_feature_layer=layer).logits
    truth = configured(family, layer[0])
    with torch.no_grad(), vitcop.prune(truth, VisionZip(retain=8)):
        want = truth(**inputs).logits
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        (
            {"vision_feature_layer": 0},
            "vision_feature_layer: expected the output of one of the tower's 4 layers, got 0",
        ),
        ({"vision_feature_layer": 99}, "vision_feature_layer: expected the output of one of the tower's 4 layers"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_before_anything_runs(options: Any, message: str) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.batch([family.prompt(1)])
    ran: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with torch.no_grad(), vitcop.prune(model, ViTCoP(retention=0.3)):
            for call in (model, model.generate, model.model.get_image_features):
                given = inputs if call != model.model.get_image_features else {"pixel_values": inputs["pixel_values"]}
                with pytest.raises(NotImplementedError, match=message):
                    call(**given, **options)
    finally:
        hook.remove()
    assert ran == []


def test_threads_with_options_of_their_own() -> None:
    family = FAMILIES["llava"]
    inputs = family.batch([family.prompt(1)])
    model, layers = family.build(layers=4), [-1, -2, -3] * 6
    want = {}
    for layer in set(layers):
        with torch.no_grad(), vitcop.prune(model, ViTCoP(retention=0.3)):
            want[layer] = model(**inputs, vision_feature_layer=layer).logits

    def run(layer: int) -> bool:
        with torch.no_grad():
            return torch.equal(model(**inputs, vision_feature_layer=layer).logits, want[layer])

    with vitcop.prune(model, ViTCoP(retention=0.3)), ThreadPoolExecutor(3) as pool:
        assert all(pool.map(run, layers))


def test_the_tower_by_itself_leaves_nothing(family: Family) -> None:
    """Called outside of the model, as to look at features."""
    model, inputs = family.model(), family.batch([family.prompt(1)])
    tower = getattr(model.model, family.tower)
    pixels = inputs["pixel_values"]
    args = (pixels, inputs["image_grid_thw"]) if "image_grid_thw" in inputs else (pixels.flatten(0, -4),)
    handle = vitcop.attach(model, ViTCoP(retention=0.3))
    with torch.no_grad():
        tower(*args)
    assert not handle._tokens
    handle.remove()
