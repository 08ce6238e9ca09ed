"""LLaVAs of any size with random weights, and prompts for them; nothing is downloaded."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGE_TOKEN, VOCAB, TEXT_TOKENS = 31999, 32000, 57
PATCH = 14


@dataclass(frozen=True)
class Size:
    """LLaVA-1.5-7B unless said otherwise. `side`: patches of the image's side, whose square are the visual tokens."""

    width: int = 4096
    inner: int = 11008
    heads: int = 32
    layers: int = 32
    side: int = 24
    vision_width: int = 1024
    vision_inner: int = 4096
    vision_heads: int = 16
    vision_layers: int = 24
    vocab: int = VOCAB

    @property
    def visual(self) -> int:
        return self.side**2


def build(size: Size, dtype: torch.dtype = torch.float32) -> Any:
    """A `LlavaForConditionalGeneration` in evaluation mode. Its decoder layers share one set of weights, which saves
    time and memory; each layer still does its full arithmetic."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=size.vision_inner,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.side * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=1,
        num_attention_heads=size.heads,
        vocab_size=size.vocab,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=size.vocab - 1)
        model: Any = LlavaForConditionalGeneration(config)
    model = model.to(dtype).eval()
    decoder = model.model.language_model
    first = decoder.layers[0]
    for index in range(1, size.layers):
        layer = type(first)(text, index).to("meta")
        for name, parameter in first.named_parameters():
            owner = layer.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], parameter)
        decoder.layers.append(layer.eval())
    text.num_hidden_layers = size.layers
    return model


def prompt(
    size: Size, text_tokens: int = TEXT_TOKENS, batch: int = 1, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Inputs of the model: one image of noise per prompt, about 60 % of the text before it, as in LLaVA-1.5's template.

    Returns `input_ids` and `attention_mask` `[batch, visual + text_tokens]` and `pixel_values` `[batch, 3, s, s]`.
    """
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, size.vocab - 1, (batch, text_tokens), generator=generator)
    before = round(text_tokens * 35 / TEXT_TOKENS)
    image = torch.full((batch, size.visual), size.vocab - 1)
    ids = torch.cat([text[:, :before], image, text[:, before:]], dim=1)
    pixels = torch.randn(batch, 3, size.side * PATCH, size.side * PATCH, generator=generator).to(dtype)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
