"""The shape of vitcop-tiny, its initialisation, and the heads that warm up its vision tower."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from .batches import BOS, EOS, IMAGE, PAD
from .pictures import COLORS, GRID, KINDS, PATCH, SIDE
from .questions import WORDS

MEAN = STD = 0.25  # the pictures are dark: about a quarter of the range each
VISION_WIDTH, VISION_LAYERS, WIDTH, LAYERS, HEAD = 128, 6, 128, 12, 32


def config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=3 * VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=VISION_WIDTH // HEAD,
        hidden_act="gelu",
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=int(2.5 * WIDTH),
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // HEAD,
        vocab_size=8 * math.ceil(len(WORDS) / 8),
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def build(seed: int) -> Any:
    """A model whose initialisation suits its size: Hugging Face's default is too small to start from."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(config(), attn_implementation="sdpa")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "vision_tower" in name or weight.dim() != 2:
                continue
            fan_in = weight.shape[1] ** -0.5
            if "embed_tokens" in name:
                weight.normal_(std=0.7)
            elif "projector" in name:
                weight.normal_(std=fan_in)
            elif "o_proj" in name or "down_proj" in name:
                weight.normal_(std=fan_in / (2 * LAYERS) ** 0.5)
            else:
                weight.normal_(std=0.7 * fan_in)
        positions = tower(model).embeddings.position_embedding.weight
        positions[1:] = 0.4 * sines(VISION_WIDTH)
    return model


def tower(model: Any) -> Any:
    vision = model.model.vision_tower
    return getattr(vision, "vision_model", vision)


def sines(width: int) -> Tensor:
    """[GRID * GRID, width] 2-D sine positions: patches can find their neighbours from the first step."""
    place = torch.arange(GRID).float()
    frequency = 20.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, cols = (p.reshape(-1, 1) * frequency for p in torch.meshgrid(place, place, indexing="ij"))
    return torch.cat([rows.sin(), rows.cos(), cols.sin(), cols.cos()], dim=1)


def normalized(pixels: Tensor) -> Tensor:
    """[B, SIDE, SIDE, 3] uint8 -> [B, 3, SIDE, SIDE] as the image processor hands it to the model."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def see(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features of [CLS] and patches `[B, 1 + GRID * GRID, C]` that the projector gets, and the pooled [CLS]."""
    output = model.model.vision_tower(normalized(pixels), output_hidden_states=True)
    return output.hidden_states[-2], output.pooler_output


class WarmUpHeads(nn.Module):
    """Teach patches what covers them, and [CLS] what there is: then its attention goes to things. Thrown away later."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Linear(VISION_WIDTH, len(KINDS) + 1)
        self.color = nn.Linear(VISION_WIDTH, len(COLORS) + 1)
        self.counts = nn.Linear(VISION_WIDTH, (len(KINDS) + len(COLORS)) * 4)
        self.pairs = nn.Linear(VISION_WIDTH, len(KINDS) * len(COLORS))

    def forward(self, features: Tensor, pooled: Tensor, batch: dict[str, Tensor]) -> Tensor:
        weight = torch.where(batch["patch_kind"] > 0, 1.0, 0.3)
        weight = weight / weight.sum()
        loss = torch.zeros((), device=features.device)
        for head, name in ((self.kind, "patch_kind"), (self.color, "patch_color")):
            logits = head(features[:, 1:]).float().transpose(1, 2)
            loss = loss + (nn.functional.cross_entropy(logits, batch[name], reduction="none") * weight).sum()
        counts = self.counts(pooled).float().unflatten(-1, (-1, 4)).transpose(1, 2)
        pairs = self.pairs(pooled).float()
        loss = loss + 0.5 * nn.functional.cross_entropy(counts, batch["counts"])
        return loss + nn.functional.binary_cross_entropy_with_logits(pairs, batch["pairs"], reduction="sum") / (
            12 * len(pairs)
        )
