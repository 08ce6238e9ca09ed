"""Small random InternVLs, and a slow look at their tiles for `slow_llava`."""

import math
from typing import Any

import tiny_llava
import torch
from slow_vision import OTHERS, Seen
from tiny_llava import IMAGE, PAD, VOCABULARY
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

GRID = 4  # tokens of a tile's side, of two patches each


def tiny_internvl(
    *,
    qk_norm: bool = False,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    feature_layer: int = -1,
    layers: int = 8,
    key_heads: int = 2,
    seed: int = 0,
) -> Any:
    """Weights are larger than usual, so that attention and the choice of tokens are far from uniform."""
    torch.manual_seed(seed)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=[32, 32],
            patch_size=[4, 4],
            use_qk_norm=qk_norm,
            attention_bias=True,
            layer_scale_init_value=0.7,
            norm_type="rms_norm" if qk_norm else "layer_norm",
            use_mean_pooling=not qk_norm,
        ),
        text_config=Qwen2Config(
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
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
        vision_feature_layer=feature_layer,
    )
    model = InternVLForConditionalGeneration._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 1.5 / weight[0].numel() ** 0.5 if "lm_head" not in name else 0.3)
            elif "bias" in name or "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
        model.model.vision_tower.embeddings.position_embeddings.normal_(0, 0.5)
        model.lm_head.weight[IMAGE] = 0  # an answer without placeholders
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(dtype).eval()


def prompt(tiles: int, seed: int = 0, text: int = 5) -> tuple[list[int], Tensor]:
    """Token ids with tiles among text, and their pixels `[tiles, 3, 32, 32]`."""
    generator = torch.Generator().manual_seed(2000 * tiles + seed)
    return tiny_llava.prompt(tiles, seed, text)[0], torch.randn(tiles, 3, 32, 32, generator=generator)


def see(model: Any, tiles: Any) -> dict[str, list[list[Seen]]]:
    """In place of `slow_vision.see`: the visual tokens of each tile, as the tower and the projector see them."""
    found = []
    for pixels in [] if tiles is None else tiles:
        states, received, keys = look(model.model.vision_tower, model.config.vision_feature_layer, pixels)
        tokens = []
        for row in range(GRID):
            for col in range(GRID):
                of = [1 + (2 * row + r) * 2 * GRID + 2 * col + c for r in range(2) for c in range(2)]
                state = torch.cat([states[i] for i in of])
                hidden = model.model.multi_modal_projector(state)
                feature, saliency = keys[of].float().mean(0), float(received[of].mean())
                tokens.append(Seen(hidden, feature, saliency, (row / GRID, col / GRID), 0, state))
        found.append(tokens)
    return {"image": found, "video": []}


def look(tower: Any, feature_layer: int, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States, attention of [CLS] and keys `[1 + patches, ...]` of one tile."""
    weight, bias = (p.detach() for p in tower.embeddings.patch_embeddings.projection.parameters())
    squares = pixels.to(weight.dtype).unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)
    x = torch.cat([tower.embeddings.cls_token[0], squares @ weight.flatten(1).T + bias])
    x = x + tower.embeddings.position_embeddings[0]
    chosen = len(tower.encoder.layer) + feature_layer
    for number, layer in enumerate(tower.encoder.layer[: chosen + 1]):
        attention = layer.attention
        normed = layer.layernorm_before(x)
        query, keys = attention.q_norm(attention.q_proj(normed)), attention.k_norm(attention.k_proj(normed))
        value, received, parts = attention.v_proj(normed), torch.zeros(len(x)), []
        for q, k, v in zip(*(t.chunk(attention.num_heads, dim=-1) for t in (query, keys, value)), strict=True):
            share = ((q @ k.T) / math.sqrt(q.shape[-1])).float().softmax(-1)
            received = received + share[0]
            parts.append(share.to(v.dtype) @ v)
        x = x + layer.lambda_1 * attention.projection_layer(torch.cat(parts, dim=-1))
        x = x + layer.lambda_2 * layer.mlp(layer.layernorm_after(x))
        if number == chosen:
            break
    return tower.layernorm(x) if feature_layer == -1 else x, received, keys


OTHERS["internvl"] = see
