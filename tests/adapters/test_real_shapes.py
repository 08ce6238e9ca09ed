"""Geometries of released checkpoints: how many tokens, in which segments. Only the widths of the layers are small."""

import inspect
import math
from typing import Any

import pytest
import torch
import transformers

from vitcop.adapters import adapter_for
from vitcop.adapters.tower import TileTokens, TowerRun
from vitcop.engine.layout import group_samples, read_prompt

SMALL: dict[str, Any] = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1)
TEXT: dict[str, Any] = dict(SMALL, vocab_size=10, num_key_value_heads=1)
PLACEHOLDERS = dict(image_token_index=8, video_token_index=9)


def build(family: str) -> Any:
    if family == "LlavaOnevision":
        vision: Any = transformers.SiglipVisionConfig(**SMALL, image_size=384, patch_size=14, vision_use_head=False)
        text: Any = transformers.Qwen2Config(**TEXT)
    else:
        vision = transformers.CLIPVisionConfig(**SMALL, image_size=336, patch_size=14, projection_dim=8)
        text = transformers.LlamaConfig(**TEXT)
    ids = {name: i for name, i in PLACEHOLDERS.items() if family != "LlavaNext" or "image" in name}
    config = getattr(transformers, f"{family}Config")(vision_config=vision, text_config=text, **ids)
    return getattr(transformers, f"{family}ForConditionalGeneration")(config)


def tokens_of(adapter: Any, tiles: int) -> TileTokens:
    patches = adapter.grid[0] * adapter.grid[1] + int(adapter.has_cls)
    keys = torch.zeros(tiles, patches, 8)
    return adapter.tokens(TowerRun(keys[:, :1], keys, 1, 1.0, adapter.has_cls))


def image(family: str, height: int, width: int, tiles: int) -> TileTokens:
    """By the adapter alone, told how the model packs."""
    model = build(family)
    adapter: Any = adapter_for(model)
    tokens, pack = tokens_of(adapter, tiles), model.model.pack_image_features
    features = [torch.zeros(tiles, adapter.grid[0] * adapter.grid[1], 8)]
    strategy = {} if family == "LlavaOnevision" else {"vision_feature_select_strategy": "default"}
    call = inspect.signature(pack).bind(
        features, torch.tensor([[height, width]]), image_newline=torch.zeros(8), **strategy
    )
    packed, _ = pack(*call.args, **call.kwargs)
    adapter.pack(tokens, pack, call)
    assert tokens.image_tokens == [len(packed[0])]
    return tokens


def sizes(tokens: TileTokens) -> list[int]:
    return tokens.segments().bincount().tolist()


@pytest.mark.parametrize(
    ("family", "height", "width", "tiles", "segments"),
    [
        ("LlavaNext", 672, 672, 5, [576] * 5 + [48]),  # 2880 patches, 2928 tokens
        ("LlavaNext", 480, 640, 5, [576, 432, 432, 432, 432, 36]),  # 36 of 48 rows
        ("LlavaNext", 336, 1008, 4, [576] * 4 + [24]),
        ("LlavaNextVideo", 672, 336, 3, [576, 576, 576, 48]),
        ("LlavaOnevision", 384, 384, 2, [729, 729, 27]),  # 1485 tokens
        ("LlavaOnevision", 2304, 2304, 37, None),  # shrunk to nine tiles' worth of patches
    ],
)
def test_images(family: str, height: int, width: int, tiles: int, segments: list[int] | None) -> None:
    tokens = image(family, height, width, tiles)
    if segments is None:
        assert sum(tokens.image_tokens) == 729 + 81 * (81 + 1) == sum(sizes(tokens))
        assert len(sizes(tokens)) == tiles + 1 and max(sizes(tokens)[1:]) < 729
    else:
        assert sizes(tokens) == segments
    breaks = tokens.segments() == tiles
    for values in (tokens.saliency()[:, None], tokens.features(), tokens.positions()):
        assert torch.equal(values.isnan().any(1), breaks)
    places = tokens.positions()[~breaks]
    assert places.min() == 0 and 1 - 2 / math.isqrt(max(sizes(tokens))) < places.max() < 1

    total = sum(tokens.image_tokens)
    prompt = read_prompt(torch.tensor([[8] * total + [1]]), {"image": 8}, None)
    (group,) = group_samples(prompt, [tokens], torch.device("cpu"))
    assert (group.total, group.num_segments, group.max_segment) == (total, tiles + 1, max(sizes(tokens)))
    assert not group.ordered or tiles == 2


@pytest.mark.parametrize(
    ("family", "per_frame", "breaks"), [("LlavaNextVideo", 12 * 12, 0), ("LlavaOnevision", 14 * 14, 1)]
)
def test_videos(family: str, per_frame: int, breaks: int) -> None:
    adapter: Any = adapter_for(build(family))
    tokens = tokens_of(adapter, 2 * 32)
    adapter.split(tokens, 2, 32)
    assert tokens.image_tokens == [32 * per_frame + breaks] * 2 and tokens.kind == "video"  # 4608, 6273
    one = tokens.segments()[: tokens.image_tokens[0]]
    assert one.bincount().tolist() == [per_frame] * 32 + [1] * breaks
    places = tokens.positions()[: tokens.image_tokens[0]]
    assert torch.equal(places.isnan().any(1), one == 32)
    # The distance of neighbours is that of the pooled grid.
    side = math.isqrt(per_frame)
    frame = places[:per_frame].view(side, side, 2)
    assert torch.allclose(frame[2, 3] - frame[1, 2], torch.tensor([1.0, 1.0]) / side)
    assert len(tokens.saliency()) == len(tokens.features()) == 2 * (32 * per_frame + breaks)


def test_a_single_picture_of_several_has_its_line_break_at_the_end() -> None:
    tokens = image("LlavaOnevision", 384, 384, 1)
    assert sizes(tokens) == [729, 1] and tokens.segments()[-1] == 1


def test_the_sizes_are_read_once() -> None:
    """Whatever the model's own code does, the adapter copies the sizes of all images in one go."""
    adapter: Any = adapter_for(build("LlavaNext"))
    reads = []
    seen: dict[str, Any] = {}

    def original(image_features: Any, image_sizes: Any, image_newline: Any = None) -> Any:
        seen["sizes"] = image_sizes
        return adapter.owner.pack_image_features(image_features, image_sizes, "default", image_newline)

    class Sizes(torch.Tensor):
        def tolist(self) -> Any:
            reads.append(1)
            return super().tolist()

    sizes_tensor = torch.tensor([[672, 672], [480, 640]]).as_subclass(Sizes)
    features = [torch.zeros(5, 576, 8)] * 2
    call = inspect.signature(original).bind(features, sizes_tensor, image_newline=torch.zeros(8))
    adapter.pack(tokens_of(adapter, 10), original, call)
    assert len(reads) == 1 and seen["sizes"] == [[672, 672], [480, 640]]
