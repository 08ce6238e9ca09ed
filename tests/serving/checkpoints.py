"""LLaVA-NeXT with the weights of vitcop-tiny: same tower, projector and decoder, and a line break besides."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vitcop.loading import TINY

SIDE = 112
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def llava_next(folder: Path, decoder: str = "mistral") -> Path:
    """Write it, its decoder called a Llama or a Mistral (which have the same weights). Answers are those of a model
    that never saw tiles: they tell one choice of tokens from another, and no more."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = json.loads((TINY / "config.json").read_text())
    config |= {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": PINPOINTS,
        "use_image_newline_parameter": True,
    }
    config["text_config"] |= {"max_position_embeddings": 4096, "model_type": decoder}
    if decoder == "mistral":
        config["text_config"]["sliding_window"] = None
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(TINY / "model.safetensors")
    width = config["text_config"]["hidden_size"]
    line_break = torch.randn(width, generator=torch.Generator().manual_seed(0))
    weights["image_newline"] = (0.5 * line_break).to(torch.float16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    processor = json.loads((TINY / "processor_config.json").read_text())
    images = {
        **processor["image_processor"],
        "image_processor_type": "LlavaNextImageProcessor",
        "do_pad": True,
        "image_grid_pinpoints": PINPOINTS,
    }
    processor |= {"processor_class": "LlavaNextProcessor", "image_processor": images}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "preprocessor_config.json").write_text(json.dumps(images | {"processor_class": "LlavaNextProcessor"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        text = (TINY / name).read_text()
        (folder / name).write_text(text.replace("LlavaProcessor", "LlavaNextProcessor").replace("512", "4096"))
    return folder
