"""The vision tower's layers that no method looks into, run once per picture instead of once per question.

Methods look at the layer whose output is projected. What enters it depends on the picture alone.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from vitcop.adapters.base import feature_layer, tower_layers


class TowerPrefix:
    """Hidden states `[pictures, 1 + N, D]` at the input of the tower's layer that is looked at."""

    def __init__(self, model: Any, pixels: Tensor, batch_size: int = 64) -> None:
        self.tower = model.model.vision_tower
        self.layer = tower_layers(self.tower)[
            feature_layer(tower_layers(self.tower), model.config.vision_feature_layer)
        ]
        self.others = [layer for layer in tower_layers(self.tower) if layer is not self.layer]
        seen: list[Tensor] = []
        keep = self.layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with keep, torch.inference_mode():
            for part in pixels.split(batch_size):
                self.tower(part)
        self.states = torch.cat(seen)

    @contextlib.contextmanager
    def __call__(self, pictures: Sequence[int]) -> Iterator[None]:
        """The next run of the tower is on these pictures."""
        states = self.states[torch.tensor(pictures)]
        try:
            with self.layer.register_forward_pre_hook(lambda module, args: (states, *args[1:])):
                for layer in self.others:
                    layer.forward = _unchanged
                yield
        finally:
            for layer in self.others:
                del layer.forward


def _unchanged(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A layer's output: transformers 5 passes on the states, 4 a tuple."""
    return (hidden_states,) if transformers.__version__.startswith("4.") else hidden_states
