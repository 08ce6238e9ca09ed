"""The plain transformer is DINOv2's, as Hugging Face's code has it: random weights, no file."""

import re

import pytest
import torch

from studies.real_features.vit import VisionTransformer

transformers = pytest.importorskip("transformers")
RENAMED = {  # transformers 5 -> 4.57, whose names the weights have
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
}


@pytest.fixture
def theirs() -> torch.nn.Module:
    config = transformers.Dinov2Config(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=42,
        patch_size=14,
        mlp_ratio=2,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    model = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial ones and zeros, where a slip would not show
            parameter.normal_(0.2, 0.5)
    return model


@pytest.mark.parametrize("height, width", [(42, 42), (56, 56), (28, 70)])
def test_is_dinov2(theirs: torch.nn.Module, height: int, width: int) -> None:
    weights = {}
    for name, tensor in theirs.state_dict().items():
        for new, old in RENAMED.items():
            name = re.sub(new, old, name)
        weights[name] = tensor
    pixels = torch.randn(2, 3, height, width)
    with torch.no_grad():
        want = theirs(pixels, output_attentions=True, output_hidden_states=True)
    blocks, tokens = VisionTransformer(weights, heads=3)(pixels)

    torch.testing.assert_close(tokens, want.last_hidden_state, rtol=1e-4, atol=1e-4)
    for block, attention, hidden in zip(blocks, want.attentions, want.hidden_states[1:], strict=True):
        torch.testing.assert_close(block.hidden, hidden, rtol=1e-4, atol=1e-4)
        scores = block.query @ block.key.transpose(-1, -2) / 8**0.5
        torch.testing.assert_close(scores.softmax(-1), attention, rtol=1e-3, atol=1e-5)
