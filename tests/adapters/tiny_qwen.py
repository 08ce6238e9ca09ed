"""Small random Qwen2.5-VLs and Qwen3-VLs, and prompts with pictures and films of several sizes for them."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

IMAGE, VIDEO, START, END, PAD, VOCABULARY = 99, 98, 97, 96, 0, 100
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
MERGE = 2
SIZES, FILM = [(3, 3), (4, 3), (2, 5)], (2, 2, 3)


@dataclass
class Media:
    """A picture (one frame) or a film: its frames, rows and columns of tokens, and its pixels patch by patch."""

    kind: str
    grid: tuple[int, int, int]
    pixels: Tensor  # [patches, 3*2*4*4]


@dataclass
class Sample:
    ids: list[int]
    media: list[Media]


def tiny_qwen(
    family: str,
    *,
    layers: int = 8,
    key_heads: int = 2,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Any:
    """Weights are larger than usual, so that attention and the choice of tokens are far from uniform."""
    torch.manual_seed(seed)
    text: dict[str, Any] = dict(
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
    )
    vision: dict[str, Any] = dict(
        depth=3,
        hidden_size=32,
        num_heads=2,
        intermediate_size=64,
        patch_size=4,
        temporal_patch_size=2,
        spatial_merge_size=MERGE,
        out_hidden_size=64,
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    text["rope_scaling" if transformers.__version__ < "5" else "rope_parameters"] = rope
    if family == "qwen2_5_vl":
        kind: Any = transformers.Qwen2_5_VLForConditionalGeneration
        # Windows of 2 x 2 tokens; full attention in block 1, not in the last one.
        vision |= dict(window_size=16, fullatt_block_indexes=[1], tokens_per_second=1)
        config_type: Any = transformers.Qwen2_5_VLConfig
    else:
        kind, config_type = transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig
        # Features are added after decoder layers 0, 1 and 2: before and after the merge at layer 2.
        vision |= dict(num_position_embeddings=25, deepstack_visual_indexes=[0, 1, 2])
        text |= dict(head_dim=16)
        rope["mrope_interleaved"] = True  # type: ignore[assignment]
    if "rope_parameters" in text:
        rope["rope_theta"] = 1000.0  # type: ignore[assignment]
    else:
        text["rope_theta"] = 1000.0
    config = config_type(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    model = kind._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 1.5 / weight[0].numel() ** 0.5 if "lm_head" not in name else 0.3)
            elif "bias" in name or "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
        model.lm_head.weight[[IMAGE, VIDEO, START]] = 0  # an answer without placeholders
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(dtype).eval()


def prompt(*grids: tuple[int, ...], family: str = "qwen2_5_vl", seed: int = 0, text: int = 5) -> Sample:
    """Token ids with pictures of (rows, columns) and films of (frames, rows, columns) among text."""
    generator = torch.Generator().manual_seed(1000 * len(grids) + seed)

    def words(n: int) -> list[int]:
        return torch.randint(2, END, (n,), generator=generator).tolist()

    ids, media = [1, *words(2)], []
    for size in grids:
        frames, rows, cols = size if len(size) == 3 else (1, *size)
        pixels = torch.randn(frames * rows * cols * MERGE**2, 3 * 2 * 4 * 4, generator=generator)
        media.append(Media("video" if len(size) == 3 else "image", (frames, rows, cols), pixels))
        if len(size) == 2:
            ids += [START] + [IMAGE] * (rows * cols) + [END]
        elif family == "qwen2_5_vl":
            ids += [START] + [VIDEO] * (frames * rows * cols) + [END]
        else:  # each frame on its own, after its time
            for _ in range(frames):
                ids += words(1) + [START] + [VIDEO] * (rows * cols) + [END]
        ids += words(1)
    return Sample(ids + words(text), media)


def pictures(family: str, images: int, seed: int = 0, text: int = 5, videos: int = 0) -> tuple[list[int], "Shown"]:
    """Token ids with films and pictures of several sizes in turns, as the other families' prompts have them."""
    grids: list[tuple[int, ...]] = []
    for number in range(max(images, videos)):
        if number < videos:
            grids.append(FILM)
        if number < images:
            grids.append(SIZES[(number + seed) % len(SIZES)])
    sample = prompt(*grids, family=family, seed=seed, text=text)
    return sample.ids, Shown(sample.media)


class Shown(list[Media]):
    def to(self, dtype: torch.dtype) -> "Shown":
        return Shown(Media(m.kind, m.grid, m.pixels.to(dtype)) for m in self)


def batch(
    model: Any, samples: Sequence[Sample], side: str = "left", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Samples padded to one batch, as a processor returns them. `model`: or its class."""
    width = max(len(sample.ids) for sample in samples)
    rows, mask = [], []
    for sample in samples:
        padding = [PAD] * (width - len(sample.ids))
        ones, zeros = [1] * len(sample.ids), [0] * len(padding)
        rows.append(padding + sample.ids if side == "left" else sample.ids + padding)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    ids = torch.tensor(rows)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.tensor(mask)}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        media = [m for sample in samples for m in sample.media if m.kind == kind]
        if media:
            inputs[name] = torch.cat([m.pixels for m in media]).to(dtype)
            grid = [(frames, rows * MERGE, cols * MERGE) for frames, rows, cols in (m.grid for m in media)]
            inputs[f"{kind}_grid_thw"] = torch.tensor(grid)
    return inputs
