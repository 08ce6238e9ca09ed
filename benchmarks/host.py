"""Host time of pruning: a LLaVA whose arithmetic is nothing, so that Python, dispatcher and launches are all there is.

Prefills are given in units of a decoder layer's forward, each on a prompt laid out like none before it; decoding steps
as a ratio. Pruned and unpruned forwards take turns, on one thread; lower quartiles.

    python -m benchmarks.host [--rounds 60]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import vitcop
from benchmarks.harness import write_results
from vitcop import FastV, PyramidDrop, SparseVLM, VisionOnly, VisionZip, ViTCoP
from vitcop.engine.cache import given, name_for
from vitcop.methods import Method

LAYERS, PATCHES, IMAGE = 32, 16, 99
METHODS: dict[str, Method] = {
    "ViTCoP": ViTCoP(retain=6), "FastV": FastV(retain=6), "PyramidDrop": PyramidDrop(retain=6),
    "SparseVLM": SparseVLM(retain=6), "VisionZip": VisionZip(retain=6), "VisionOnly": VisionOnly(retain=6),
}  # fmt: skip


def build() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    small: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    vision = CLIPVisionConfig(**small, num_hidden_layers=3, image_size=56, patch_size=14, projection_dim=32)
    text = LlamaConfig(**small, num_hidden_layers=LAYERS, num_key_value_heads=2, vocab_size=100, pad_token_id=1)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2)
    return LlavaForConditionalGeneration(config).eval()


def prompt(images: list[int], turn: int, width: int = 60) -> dict[str, torch.Tensor]:
    """Left-padded prompts, laid out in another way each turn; an image has 16 tokens."""
    ids = torch.randint(2, 90, (len(images), width))
    mask = torch.ones_like(ids)
    for row, count in enumerate(images):
        ids[row, 5 + turn % 5 : 5 + turn % 5 + PATCHES * count] = IMAGE
        if len(images) > 1:
            ids[row, : row % 4], mask[row, : row % 4] = 1, 0
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(sum(images), 3, 56, 56)}


def timed(work: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    start = time.perf_counter()
    work(*args, **kwargs)
    return time.perf_counter() - start


def quartile(times: list[float]) -> float:
    return sorted(times)[len(times) // 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model = build()
    decoder = model.model.language_model

    @torch.inference_mode()
    def prefill(inputs: dict[str, torch.Tensor]) -> Any:
        return given(model(**inputs, use_cache=True))

    def difference(images: list[int], method: Method | None) -> float:
        """Seconds of a prefill under a method (None: none) beyond those of an unpruned one."""
        plain, other = [], []
        for turn in range(rounds):
            inputs = prompt(images, turn)
            plain.append(timed(prefill, inputs))
            if method is None:
                other.append(timed(prefill, inputs))
                continue
            with vitcop.prune(model, method):
                prefill(prompt(images, turn + 1))
                other.append(timed(prefill, inputs))
        return quartile(other[5:]) - quartile(plain[5:])

    @torch.inference_mode()
    def steps(cache: Any, mask: torch.Tensor, into: list[float]) -> None:
        for _ in range(12):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            step = {"input_ids": mask[:, :1] + 10, "attention_mask": mask, name_for(model.model): cache}
            into.append(timed(model, **step, use_cache=True))

    def decoding(images: list[int], method: Method | None) -> float:
        """A decoding step under a method, in shares of an unpruned one, minus 1."""
        plain: list[float] = []
        other: list[float] = []
        for turn in range(max(rounds // 4, 3)):
            inputs = prompt(images, turn)
            steps(prefill(inputs), inputs["attention_mask"], plain)
            if method is None:
                steps(prefill(inputs), inputs["attention_mask"], other)
                continue
            with vitcop.prune(model, method):
                steps(prefill(inputs), inputs["attention_mask"], other)
        return quartile(other[24:]) / quartile(plain[24:]) - 1

    hidden = torch.randn(1, 60, 32)
    rotary = decoder.rotary_emb(hidden, torch.arange(60)[None])
    with torch.inference_mode():
        layer = quartile([timed(decoder.layers[5], hidden, position_embeddings=rotary) for _ in range(800)])
    results: dict[str, float] = {"a decoder layer, us": layer * 1e6}
    results["prefill, unpruned against itself, layers"] = difference([1], None) / layer
    for name, method in METHODS.items():
        results[f"prefill, {name}, layers"] = difference([1], method) / layer
    results["prefill, ViTCoP, batch of 4 with 1, 2, 0 and 1 images, layers"] = (
        difference([1, 2, 0, 1], METHODS["ViTCoP"]) / layer
    )
    results["decoding, unpruned against itself, %"] = 100 * decoding([1], None)
    results["decoding, ViTCoP, %"] = 100 * decoding([1], METHODS["ViTCoP"])
    results["decoding, ViTCoP, batch of 4 with padding, %"] = 100 * decoding([1, 2, 1, 1], METHODS["ViTCoP"])
    for name, value in results.items():
        print(f"{name:64} {value:8.2f}")
    write_results("host", {"rounds": rounds, "results": results})


if __name__ == "__main__":
    main()
