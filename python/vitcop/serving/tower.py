"""The worker's side: what the vision tower saw, and what becomes of the tokens of each image."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tp_group, tensor_model_parallel_all_gather

import vitcop_kernels as ops
from vitcop.adapters.tower import TowerRun
from vitcop.engine import parallel

from .budget import TOKENS, Budget
from .layout import Layout

MAX_TILES = 32
"""Tiles in one pass of the tower. The scheduler counts an image as its few tokens and may admit hundreds at once."""


@dataclass
class Image:
    """G images of one layout. Implements `vision_only.Seen`."""

    layout: Layout
    budget: int
    saliency: Tensor  # [G, V]
    features: Tensor  # [G, V, D]

    def __post_init__(self) -> None:
        images, self.count = self.saliency.shape
        self.num_segments, self.max_segment = self.layout.num_segments, self.layout.max_segment
        self.ordered = self.layout.ordered
        device = self.saliency.device
        self.segment = self.layout.segment.to(device).expand(images, -1)
        self.positions = self.layout.positions.to(device).expand(images, -1, -1)


class PrunedTower:
    """Mixed in before a model of vLLM with a CLIP tower, whose `embed_multimodal` gives the tokens of each image."""

    config: Any
    vision_tower: Any
    supports_tower_connector_lora = False  # its token counts are those of unpruned images

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        config = self.config
        self.budget = Budget.of(config)
        for name, found, expected in (
            ("vision_config.model_type", config.vision_config.model_type, "clip_vision_model"),
            ("vision_feature_select_strategy", config.vision_feature_select_strategy, "default"),
            ("type of vision_feature_layer", type(config.vision_feature_layer).__name__, "int"),
        ):
            if found != expected:
                raise NotImplementedError(f"vitcop: expected the {name} to be {expected!r}, got {found!r}")

    @property
    def attention(self) -> Any:
        """Of the layer whose output is projected: vLLM builds the tower only up to it."""
        return self.vision_tower.vision_model.encoder.layers[-1].self_attn

    def layouts(self, images: int, options: dict[str, Any]) -> list[Layout]:
        """Of each image, from the multimodal inputs of the batch."""
        raise NotImplementedError

    def embed_multimodal(self, **options: Any) -> Any:
        """The tokens of each image, `[tokens, C]`: as many as its field says, or all where it has no more."""
        asked = options.pop(TOKENS, None)
        if asked is None:  # ready-made embeddings, or no images
            return super().embed_multimodal(**options)  # type: ignore[misc]
        tokens = [int(number) for number in asked]
        layouts = self.layouts(len(tokens), options)
        if all(layout.count <= number for layout, number in zip(layouts, tokens, strict=True)):
            return super().embed_multimodal(**options)  # type: ignore[misc]
        tiles = [len(pixels) if pixels.dim() == 4 else 1 for pixels in options["pixel_values"]]
        made: list[Tensor] = []
        for part in parts(tiles):
            inputs = {name: value[part] for name, value in options.items()}
            with self._watched() as seen:
                whole = super().embed_multimodal(**inputs)  # type: ignore[misc]
            made += self._reduced(list(whole), seen["run"], tiles[part], layouts[part], tokens[part])
        return made

    @contextmanager
    def _watched(self) -> Iterator[dict[str, TowerRun]]:
        """Queries of [CLS] and keys of the tower's last layer, without another pass or attention weights."""
        seen: dict[str, TowerRun] = {}

        def keep(module: Any, args: Any) -> None:
            query, keys = args[:2]
            heads = self.attention.num_heads_per_partition
            seen["run"] = TowerRun(query[:, :1].clone(), keys, heads, self.attention.scale, True)

        hook = self.attention.attn.register_forward_pre_hook(keep)
        try:
            yield seen
        finally:
            hook.remove()

    def _reduced(
        self, whole: list[Tensor], run: TowerRun, tiles: Sequence[int], layouts: Sequence[Layout], tokens: Sequence[int]
    ) -> list[Tensor]:
        """`whole`, with fewer tokens for the images that have more than they should."""
        saliency, features = run.saliency(), run.features()
        if self.attention.tp_size > 1:  # each rank has some of the heads
            saliency = parallel.sum_over_heads(saliency.contiguous(), get_tp_group().device_group)
            features = tensor_model_parallel_all_gather(features.contiguous(), dim=-1)
        first = list(itertools.accumulate(tiles, initial=0))
        alike: dict[tuple[Layout, int], list[int]] = {}
        for number, (layout, wanted) in enumerate(zip(layouts, tokens, strict=True)):
            if wanted < layout.count:
                alike.setdefault((layout, wanted), []).append(number)
        for (layout, wanted), images in alike.items():
            begin = [first[number] for number in images]
            seen = Image(
                layout, wanted, layout.arrange(saliency[..., None], begin)[..., 0], layout.arrange(features, begin)
            )
            pruned = self._pruned(seen, torch.stack([whole[number] for number in images]))
            for number, tokens_left in zip(images, pruned, strict=True):
                whole[number] = tokens_left
        return whole

    def _pruned(self, image: Image, hidden: Tensor) -> Tensor:
        """[G, V, C] -> [G, budget, C]"""
        plan = self.budget.method(image.budget).select(image)
        group = get_tp_group()
        if group.world_size > 1:  # ranks round alike only most of the time, and one that disagreed would be silent
            plan = parallel.first_ranks(plan, group.device_group)
        assert plan.perm is not None and plan.offsets is not None
        return ops.segment_mean(hidden, plan.perm, plan.offsets)


def parts(tiles: Sequence[int]) -> list[slice]:
    """Consecutive images whose tiles together are at most MAX_TILES, or that are one image."""
    found, begin, held = [], 0, 0
    for number, count in enumerate(tiles):
        if held and held + count > MAX_TILES:
            found.append(slice(begin, number))
            begin, held = number, 0
        held += count
    return [*found, slice(begin, len(tiles))]
