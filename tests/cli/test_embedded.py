"""The embedded LLaVA has LLaVA-1.5's geometry, is the same every time, and sees what is in a photograph."""

import pytest
import torch

pytest.importorskip("transformers")
from PIL import Image

from vitcop import embedded
from vitcop.compare import PHOTOGRAPH


@pytest.fixture(scope="module")
def model():
    return embedded.build_model()


@pytest.fixture(scope="module")
def processor():
    return embedded.build_processor()


def inputs(processor, image):
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text, processor(images=image, text=text, return_tensors="pt")


def test_geometry_is_that_of_llava_1_5(model):
    config = model.config
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (336, 14)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.text_config.num_hidden_layers == 32
    assert config.text_config.num_key_value_heads == config.text_config.num_attention_heads


def test_prompt_has_576_visual_tokens(model, processor):
    text, batch = inputs(processor, Image.open(PHOTOGRAPH))
    assert text == "USER: <image>\nWhat is it? ASSISTANT:"
    assert batch["pixel_values"].shape == (1, 3, 336, 336)
    assert int((batch["input_ids"] == model.config.image_token_index).sum()) == 576


def test_weights_follow_from_the_seed_alone_and_global_random_state_is_untouched(model):
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    again, other = embedded.build_model(), embedded.build_model(seed=9)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_weights_do_not_depend_on_the_version_of_transformers(model):
    """4.57 and 5.23 gave these values, though they name the parameters differently."""
    tower_keys = next(
        p for name, p in model.named_parameters() if name.endswith("encoder.layers.10.self_attn.k_proj.weight")
    )
    weights = model.lm_head.weight, model.get_input_embeddings().weight, tower_keys
    assert [w.double().sum().item() for w in weights] == pytest.approx([-44.1235, 217.1904, 0.1476], abs=2e-3)


def test_tokenizer_reads_back_any_text(processor):
    for text in ("What is on the table?", "Ünïcödé 漢字 🙂", "a  b\nc", "x = {1: [2, 3]}"):
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert processor.tokenizer.decode(ids) == text


def test_keys_of_the_photograph_are_as_far_apart_as_the_cutoff_of_the_paper_expects(model, processor):
    """d_c = 8 lies well inside the distances, so densities vary; all-equal or all-remote tokens would make them tie."""
    keys = []
    tower = model.model.vision_tower
    layers = getattr(tower, "vision_model", tower).encoder.layers
    hook = layers[-2].self_attn.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    with torch.no_grad():
        tower(inputs(processor, Image.open(PHOTOGRAPH))[1]["pixel_values"])
    hook.remove()
    distances = torch.pdist(keys[0][0, 1:])
    low, median, high = torch.quantile(distances, torch.tensor([0.05, 0.5, 0.95])).tolist()
    assert low < 8 < median < high < 45
    assert 10 < median < 25
