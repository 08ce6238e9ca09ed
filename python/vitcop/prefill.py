"""Prefill times at LLaVA-1.5's sequence length, pruned and unpruned: what `vitcop prefill` measures.

The model is built in code with random weights. Its decoder layers share one set of weights, which saves time and
memory; each layer still does its full arithmetic.
"""

import contextlib
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from .methods.vitcop import ViTCoP
from .session import prune

VISUAL_TOKENS, TEXT_TOKENS = 576, 57
IMAGE_TOKEN, VOCABULARY = 1023, 1024
TEXT_BEFORE_IMAGE = 35
HEAD_DIM = 128
VISION_LAYERS = 2  # of CLIP ViT-L/14's width; LLaVA-1.5 has 24
SECONDS = 15.0


@dataclass
class Prefill:
    """Seconds of each round."""

    unpruned: list[float] = field(default_factory=list)
    pruned: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)
    mean_tokens: float = 0.0

    def medians(self) -> tuple[float, float, float]:
        return statistics.median(self.unpruned), statistics.median(self.pruned), statistics.median(self.selection)


def build(layers: int, width: int, device: torch.device, dtype: torch.dtype) -> Any:
    """A `LlavaForConditionalGeneration` with 576 visual tokens and random weights, in evaluation mode."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=round(width * 11008 / 4096),
        num_hidden_layers=1,
        num_attention_heads=max(1, width // HEAD_DIM),
        vocab_size=VOCABULARY,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
        model: Any = LlavaForConditionalGeneration(config)
    model = model.to(device=device, dtype=dtype).eval()
    decoder = model.model.language_model
    first = decoder.layers[0]
    for index in range(1, layers):
        layer = type(first)(text, index).to("meta")
        for name, parameter in first.named_parameters():
            owner, _, attribute = name.rpartition(".")
            setattr(layer.get_submodule(owner), attribute, parameter)
        decoder.layers.append(layer.eval())
    text.num_hidden_layers = layers
    return model


def inputs(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """One image of noise between two pieces of text: 633 tokens."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, IMAGE_TOKEN, (1, TEXT_TOKENS), generator=generator)
    image = torch.full((1, VISUAL_TOKENS), IMAGE_TOKEN)
    ids = torch.cat([words[:, :TEXT_BEFORE_IMAGE], image, words[:, TEXT_BEFORE_IMAGE:]], dim=1).to(device)
    pixels = torch.randn(1, 3, 336, 336, generator=generator).to(device=device, dtype=dtype)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


def measure(*, layers: int, width: int, retain: int, device: torch.device, dtype: torch.dtype, rounds: int) -> Prefill:
    """Time pruned and unpruned prefills in turns, after one warm-up of each.

    Stops after `rounds`, or after the first round that ends later than `SECONDS` from the start.

    Raises ValueError for a budget that the layers cannot reach.
    """
    model, prompt, method = build(layers, width, device, dtype), inputs(device, dtype), ViTCoP(retain=retain)
    result = Prefill()

    @torch.no_grad()
    def prefill() -> float:
        _wait(device)
        start = time.perf_counter()
        model(**prompt, logits_to_keep=1)
        _wait(device)
        return time.perf_counter() - start

    begin = time.perf_counter()
    for number in range(rounds + 1):
        for times, active in (
            (result.unpruned, contextlib.nullcontext()),
            (result.pruned, prune(model, method)),
        ):
            with active as report:
                seconds = prefill()
            if number:
                times.append(seconds)
                if report is not None:
                    result.selection.append(report.selection_seconds)
                    result.mean_tokens = report.mean_tokens
        if number and time.perf_counter() - begin > SECONDS:
            break
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
