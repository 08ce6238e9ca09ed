"""Qwen3-VL: its decoder adds features of earlier vision blocks to the visual tokens after its first layers."""

import sys
from typing import Any

from torch import Tensor

from .base import VisualTokens
from .qwen_vl import QwenVLAdapter


class Qwen3VLAdapter(QwenVLAdapter):
    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        added = sum(index < len(owner.visual.blocks) for index in owner.visual.deepstack_visual_indexes)
        if added >= len(self.decoder.layers):
            raise NotImplementedError(
                f"deepstack_visual_indexes: expected fewer than the decoder's {len(self.decoder.layers)} layers, got "
                f"{added}"
            )

    def given(self, arguments: dict[str, Any]) -> tuple[bool, list[VisualTokens]]:
        """Before transformers 5, the model around the decoder collects its states too, as short as they are there."""
        visual, tokens = super().given(arguments)
        module = sys.modules[type(self.owner).__module__]
        if visual and arguments.get("output_hidden_states") and hasattr(module, "check_model_inputs"):
            raise NotImplementedError(
                "output_hidden_states: expected False for Qwen3-VL before transformers 5, got True (the states of a "
                "pruned prefill would have the lengths of its layers)"
            )
        return visual, tokens

    def take_injections(self, kwargs: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return [], kwargs
        return list(features), {**kwargs, "deepstack_visual_embeds": None, "visual_pos_masks": None}
