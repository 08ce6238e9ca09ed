"""What cannot be done says so in one clear sentence, before anything has changed."""

from typing import Any

import pytest
import torch
from checks import OLD
from families import FAMILIES, VARIANTS, Family
from tiny_llava import IMAGE, batch, prompt, tiny_llava
from transformers import DynamicCache, StaticCache

import vitcop
from vitcop import ViTCoP
from vitcop.adapters import check_version

METHOD = ViTCoP(retention=0.3)

pytestmark = pytest.mark.family("llava")


def refuses(model: Any, message: str, error: type[Exception] = NotImplementedError, **inputs: Any) -> None:
    with vitcop.prune(model, METHOD) as report, torch.no_grad():
        with pytest.raises(error, match=message):
            model(**inputs)
        assert report.stages == []
        model(**batch([prompt(1)]))
        assert len(report.stages) == 3


@pytest.mark.feature("static cache", "refused")
def test_static_cache(llava: Any) -> None:
    model = llava()
    cache = StaticCache(config=model.config.text_config, max_cache_len=64)
    refuses(model, "expected a DynamicCache, got StaticCache", **batch([prompt(1)]), past_key_values=cache)


@pytest.mark.feature("static cache", "refused")
def test_static_cache_of_generate(family: Family) -> None:
    model = family.model()
    with vitcop.prune(model, METHOD), pytest.raises(NotImplementedError, match="expected a DynamicCache"):
        model.generate(**family.batch([family.prompt(1)]), max_new_tokens=2, cache_implementation="static")


def test_sliding_window_cache(llava: Any) -> None:
    from transformers.cache_utils import DynamicSlidingWindowLayer

    cache = DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(sliding_window=4)]
    refuses(llava(), "DynamicSlidingWindowLayer", **batch([prompt(1)]), past_key_values=cache)


def test_masks_of_four_dimensions(llava: Any) -> None:
    inputs = batch([prompt(1)])
    n = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    refuses(llava(), r"attention_mask: expected a padding mask .*, got 4 dimensions", **inputs)


def test_images_without_placeholders(llava: Any) -> None:
    _, pixels = prompt(1)
    refuses(llava(), "got none in input_ids", ValueError, input_ids=torch.tensor([[1, 2, 3]]), pixel_values=pixels)


def test_placeholders_without_images(llava: Any) -> None:
    ids, _ = prompt(1)
    refuses(llava(), "got 16 in input_ids but no images", ValueError, input_ids=torch.tensor([ids]))


def test_visual_tokens_at_the_end(llava: Any) -> None:
    ids, pixels = prompt(1, text=0)
    ids = ids[: ids.index(IMAGE) + 16]
    refuses(
        llava(),
        "expected text after the last visual token",
        ValueError,
        input_ids=torch.tensor([ids]),
        pixel_values=pixels,
    )


def test_masked_visual_tokens(llava: Any) -> None:
    inputs = batch([prompt(1)])
    inputs["attention_mask"][0, :5] = 0
    refuses(llava(), "a visual token marked as padding", ValueError, **inputs)


def test_embeddings_of_text_alone_pass(llava: Any) -> None:
    model = llava()
    embeds = model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))
    with torch.no_grad():
        plain = model(inputs_embeds=embeds).logits
        with vitcop.prune(model, METHOD):
            assert torch.equal(model(inputs_embeds=embeds).logits, plain)


def test_a_model_without_an_adapter() -> None:
    with pytest.raises(
        NotImplementedError, match=r"expected one with an adapter \(.*llava.*\), got 'Linear'; CONTRIBUTING.md"
    ):
        vitcop.attach(torch.nn.Linear(2, 2), METHOD)


def test_a_configuration_that_cannot_be_pruned() -> None:
    model = tiny_llava(layers=3)
    model.model.config.vision_feature_select_strategy = "full"
    with pytest.raises(NotImplementedError, match="vision_feature_select_strategy: expected 'default'"):
        vitcop.attach(model, METHOD)
    model.model.config.vision_feature_select_strategy = "default"
    model.model.language_model.config.sliding_window = 16
    with pytest.raises(NotImplementedError, match="a sliding window of 16"):
        vitcop.attach(model, METHOD)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llava_next, mistral", {"language_model.sliding_window": 16}, "got a sliding window of 16"),
        (
            "llava_next_video",
            {"spatial_pool_mode": "conv"},
            "expected 'average' or 'max', got 'conv'",
        ),
        ("llava_next", {"vision_feature_select_strategy": "full"}, "expected 'default' .*, got 'full'"),
        ("llava_onevision", {"vision_feature_select_strategy": "default"}, "expected 'full' .*, got 'default'"),
    ],
)
def test_a_configuration_of_a_family_that_cannot_be_pruned(name: str, change: dict[str, Any], message: str) -> None:
    model = (FAMILIES | VARIANTS)[name].build(layers=3)
    for path, value in change.items():
        config = model.model.language_model.config if "." in path else model.model.config
        setattr(config, path.split(".")[-1], value)
    with pytest.raises(NotImplementedError, match=message):
        vitcop.attach(model, METHOD)


def test_a_mistral_without_a_sliding_window_passes() -> None:
    vitcop.attach(VARIANTS["llava_next, mistral"].build(layers=3), METHOD).remove()


def test_attention_implementations_with_other_masks() -> None:
    model = tiny_llava(layers=3)
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(NotImplementedError, match="attn_implementation: expected 'eager', 'sdpa' or a flash"):
        vitcop.attach(model, METHOD)


def test_a_budget_infeasible_for_this_prompt(llava: Any) -> None:
    model = llava()
    with vitcop.prune(model, ViTCoP(retain=2, stage1_ratio=0.9)), torch.no_grad():
        with pytest.raises(ValueError, match=r"infeasible budget.*change the retention, stage1_ratio, or the layers"):
            model(**batch([prompt(1)]))
        model(**batch([prompt(0)]))


def test_features_encoded_before_pruning_was_switched_on(llava: Any) -> None:
    if OLD:
        pytest.skip("transformers 4.57 does not take encoded images")
    model = llava()
    ids, pixels = prompt(1)
    with torch.no_grad():
        encoded = model.model.get_image_features(pixels, return_dict=True)
    refuses(model, "mm_encoder_outputs", input_ids=torch.tensor([ids]), mm_encoder_outputs={"image": encoded})


@pytest.mark.feature("gradient checkpointing", "refused", "transformers before 5")
def test_gradient_checkpointing_where_hooks_would_run_twice() -> None:
    if not OLD:
        pytest.skip("transformers 5 checkpoints without the hooks")
    model = tiny_llava(layers=4).train()
    model.gradient_checkpointing_enable()
    with vitcop.prune(model, METHOD), pytest.raises(NotImplementedError, match="gradient checkpointing"):
        model(**batch([prompt(1)]))


@pytest.mark.parametrize(
    ("version", "fits"), [("4.56.2", False), ("4.57.0", True), ("5.23.0.dev0", True), ("6.0.0", False)]
)
def test_versions_of_transformers(version: str, fits: bool) -> None:
    if fits:
        check_version(version)
    else:
        with pytest.raises(ImportError, match=f"expected version 4.57 or newer and below 6.0, got {version}"):
            check_version(version)


@pytest.mark.parametrize("way", ["generate_batch", "init_continuous_batching"])
def test_continuous_batching(llava: Any, way: str) -> None:
    model = llava()
    with vitcop.prune(model, ViTCoP(retention=0.5)), pytest.raises(NotImplementedError, match="continuous batching"):
        getattr(model, way)(**({"inputs": [[1, 2, 3]]} if way == "generate_batch" else {}))
    assert way not in vars(model) and "init_continuous_batching" not in vars(model)


def test_replicas_of_data_parallel(llava: Any) -> None:
    """As `torch.nn.parallel.replicate` makes them for several devices: their attributes are those of the original."""
    model, inputs = llava(), batch([prompt(1)])
    with vitcop.prune(model, METHOD) as report, torch.no_grad():
        replica = model._replicate_for_data_parallel()
        replica.model = model.model._replicate_for_data_parallel()
        with pytest.raises(NotImplementedError, match="use DistributedDataParallel"):
            replica(**inputs)
        assert report.stages == []
        model(**inputs)
        assert len(report.stages) == 3
