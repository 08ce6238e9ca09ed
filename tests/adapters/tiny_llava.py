"""Small random LLaVAs in the shape of LLaVA-1.5, and prompts for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE, PAD, VOCABULARY = 99, 0, 100
GRID = 4
PATCHES = GRID * GRID


def tiny_llava(
    *, layers: int = 8, key_heads: int = 4, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """Weights are larger than usual, so that attention and the choice of tokens are far from uniform."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=4 * GRID,
            patch_size=4,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=key_heads,
            max_position_embeddings=512,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=None,
        ),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        pad_token_id=PAD,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    spread(model)
    return model.to(dtype).eval()


def spread(model: Any) -> None:
    """Make the weights of a random model such that its choices can be told apart."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # Spread the key norms of visual tokens: ties and near-ties would make tests of a choice meaningless.
                weight.normal_(0, 1.5 / weight.shape[-1] ** 0.5 if "lm_head" not in name else 0.3)
        model.lm_head.weight[IMAGE] = 0  # an answer without placeholders
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD


def prompt(images: int, seed: int = 0, text: int = 5) -> tuple[list[int], Tensor]:
    """Token ids with `images` images among text, and their pixels `[images, 3, s, s]`."""
    generator = torch.Generator().manual_seed(1000 * images + seed)

    def words(n: int) -> list[int]:
        return torch.randint(2, IMAGE, (n,), generator=generator).tolist()

    ids = [1, *words(2)]
    for _ in range(images):
        ids += [IMAGE] * PATCHES + words(2)
    return ids + words(text), torch.randn(images, 3, 4 * GRID, 4 * GRID, generator=generator)


def batch(
    prompts: Sequence[tuple[list[int], Tensor]], side: str = "left", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Prompts padded to one batch, as a processor returns them."""
    inputs = pad([ids for ids, _ in prompts], side)
    pixels = [p for _, p in prompts if p is not None and len(p)]
    if pixels:
        inputs["pixel_values"] = torch.cat(pixels).to(dtype)
    return inputs


def pad(prompts: Sequence[list[int]], side: str) -> dict[str, Any]:
    """Token ids padded to one batch, with their mask."""
    width = max(map(len, prompts))
    rows, mask = [], []
    for ids in prompts:
        padding = [PAD] * (width - len(ids))
        ones, zeros = [1] * len(ids), [0] * len(padding)
        rows.append(padding + ids if side == "left" else ids + padding)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
