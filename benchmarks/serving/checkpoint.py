"""A LLaVA-1.5 of 576 visual tokens with random weights, wide enough for its decoder to be what takes the time."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vitcop.embedded import build_processor, build_tokenizer


def write(folder: Path) -> Path:
    """22 M weights in the decoder's layers, 1.3 M in the tower's."""
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=7, num_attention_heads=4, image_size=336,
        patch_size=14, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=7, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=len(tokenizer), max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=576, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    # The tower under the name that released checkpoints have, which transformers 5 no longer writes and vLLM reads.
    path = folder / "model.safetensors"
    weights = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return folder
