"""Qwen3-VL: its decoder adds features of earlier vision blocks to the visual tokens after its first layers."""

from typing import Any

from torch import Tensor

from .qwen_vl import QwenVLAdapter


class Qwen3VLAdapter(QwenVLAdapter):
    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        added = len(owner.visual.deepstack_visual_indexes)
        if added >= len(self.decoder.layers):
            raise NotImplementedError(
                f"deepstack_visual_indexes: expected fewer than the decoder's {len(self.decoder.layers)} layers, got "
                f"{added}"
            )

    def take_injections(self, kwargs: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return [], kwargs
        return list(features), {**kwargs, "deepstack_visual_embeds": None, "visual_pos_masks": None}
