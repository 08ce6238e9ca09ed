"""Without an engine: what vLLM is made to serve, and what its caches know an image by."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is another installation: make test-vllm")

from engines import TINY, picture


@pytest.fixture(scope="module")
def hashes() -> Any:
    """hashes(vitcop, tokens=None, uuid=None): keys of an image in an engine with that configuration."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import ProcessorInputs, TimingContext
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # as engines do before anything else

    def of(vitcop: dict[str, Any] | None, tokens: int | None = None, uuid: str | None = None, number: int = 0) -> str:
        overrides = {} if vitcop is None else {"vitcop": vitcop}
        config = ModelConfig(model=str(TINY), hf_overrides=overrides, max_model_len=512)
        processor = MULTIMODAL_REGISTRY.create_processor(config)
        items = processor.info.parse_mm_data({"image": picture(number)})
        names: Any = None if uuid is None else {"image": [uuid]}
        options = {} if tokens is None else {"vitcop_tokens": tokens}
        inputs = ProcessorInputs([1, 3, 45], items, names, hf_processor_mm_kwargs=options)
        made = processor.apply(inputs, TimingContext(enabled=False))
        (key,) = made["mm_hashes"]["image"]
        return str(key)

    return of


def test_every_difference_that_matters_is_in_the_key(hashes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"tokens": 196}
    keys = [
        hashes(None),
        hashes({"tokens": 64}),
        hashes({"tokens": 32}),
        hashes(whole),
        hashes(whole, number=1),
        hashes({"tokens": 64, "merged_share": 0.25}),
    ]
    from vitcop.methods import vision_only

    monkeypatch.setattr(vision_only, "VERSION", vision_only.VERSION + 1)
    keys.append(hashes({"tokens": 64}))
    assert len(set(keys)) == len(keys)


def test_equal_images_have_equal_keys_whoever_said_how_many(hashes: Any) -> None:
    assert hashes({"tokens": 64}) == hashes({"tokens": 196}, tokens=64) == hashes({"tokens": 64}, tokens=64)


def test_a_name_given_by_the_client_is_not_the_whole_key(hashes: Any) -> None:
    keys = {hashes({"tokens": 64}, tokens, uuid="mine") for tokens in (64, 32)}
    assert len(keys) == 2 and "mine" not in keys
    assert hashes(None, uuid="mine") == "mine"


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A configuration of a family whose tower has no [CLS]."""
    from transformers import Qwen2_5_VLConfig

    config = Qwen2_5_VLConfig()
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    return tmp_path


def test_another_model_is_refused_when_asked_for_and_served_when_not(qwen: Path) -> None:
    from vllm.config import ModelConfig
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    options: dict[str, Any] = {"model": str(qwen), "skip_tokenizer_init": True, "max_model_len": 512}
    assert ModelConfig(**options).architecture == "Qwen2_5_VLForConditionalGeneration"
    sentence = "vitcop: expected LlavaFor.*, got Qwen2_5_VLForConditionalGeneration: tokens are chosen by .* \\[CLS\\]"
    with pytest.raises((ValueError, NotImplementedError), match=sentence):
        ModelConfig(**options, hf_overrides={"vitcop": {"tokens": 64}})


def test_another_version_is_refused_when_asked_for_and_serves_when_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import ModelRegistry
    from vllm.config import ModelConfig

    from vitcop.serving import plugin

    stock = getattr(ModelRegistry.inspect_model_cls, "__wrapped__", ModelRegistry.inspect_model_cls)
    monkeypatch.setattr(ModelRegistry, "inspect_model_cls", stock)
    monkeypatch.setattr(plugin, "VERSIONS", ("0.12",))
    plugin.register()
    options: dict[str, Any] = {"model": str(TINY), "max_model_len": 512}
    assert ModelConfig(**options).architecture == "LlavaForConditionalGeneration"
    with pytest.raises(
        ValueError, match=r"vitcop: expected vLLM 0.12, got 0\.\d+.*: leave 'vitcop' out to serve as is"
    ):
        ModelConfig(**options, hf_overrides={"vitcop": {"tokens": 64}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": [-2, -5]}, "the type of vision_feature_layer to be 'int', got 'list'"),
        ({"vision_feature_select_strategy": "full"}, "the vision_feature_select_strategy to be 'default', got 'full'"),
        ({"vision_config": SimpleNamespace(model_type="siglip_vision_model")}, "'clip_vision_model', got 'siglip_vis"),
    ],
)
def test_towers_that_cannot_be_ranked_are_refused(change: dict[str, Any], message: str) -> None:
    from vitcop.serving.tower import PrunedTower

    found: dict[str, Any] = {
        "vitcop": {"tokens": 64},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": SimpleNamespace(model_type="clip_vision_model"),
        **change,
    }

    class Model:
        def __init__(self, *, vllm_config: Any, prefix: str) -> None:
            self.config = SimpleNamespace(**found)

    class Pruned(PrunedTower, Model):
        pass

    with pytest.raises(NotImplementedError, match=f"vitcop: expected {'.*' if 'siglip' in message else ''}{message}"):
        Pruned(vllm_config=None)


def test_the_engines_own_number_has_one_place() -> None:
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    config = ModelConfig(
        model=str(TINY), hf_overrides={"vitcop": {"tokens": 64}}, mm_processor_kwargs={"vitcop_tokens": 8}
    )
    with pytest.raises(ValueError, match=r"--mm-processor-kwargs: expected no vitcop_tokens.*--hf-overrides"):
        MULTIMODAL_REGISTRY.create_processor(config)


@pytest.mark.parametrize(
    ("tiles", "expected"),
    [
        ([1] * 32, [32]),
        ([1] * 33, [32, 1]),
        ([5] * 7, [6, 1]),
        ([40, 1, 40], [1, 1, 1]),
        ([3], [1]),
        ([30, 2, 1], [2, 1]),
    ],
)
def test_tiles_of_one_pass(tiles: list[int], expected: list[int]) -> None:
    from vitcop.serving.tower import parts

    found = parts(tiles)
    assert [part.stop - part.start for part in found] == expected
    assert [number for part in found for number in range(part.start, part.stop)] == list(range(len(tiles)))
