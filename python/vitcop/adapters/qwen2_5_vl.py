"""Qwen2.5-VL: most blocks of its vision tower attend within windows, in whose order the patches go through it."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .qwen_vl import QwenVLAdapter


class Qwen25VLAdapter(QwenVLAdapter):
    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        tower = owner.visual
        if not any(0 <= index < len(tower.blocks) for index in tower.fullatt_block_indexes):
            raise NotImplementedError(
                f"fullatt_block_indexes: expected a vision block with full attention among the {len(tower.blocks)}, "
                f"got {list(tower.fullatt_block_indexes) or 'none'}"
            )
        module = sys.modules[type(self.decoder).__module__]
        picked_in_attention = hasattr(module, "apply_multimodal_rotary_pos_emb")
        self._sections = self.decoder.config.rope_scaling["mrope_section"] if picked_in_attention else None
        self.window = tower.window_size // tower.spatial_merge_size // tower.patch_size

    @property
    def block(self) -> Any:
        tower = self.owner.visual
        return tower.blocks[max(index for index in tower.fullatt_block_indexes if index < len(tower.blocks))]

    def place(self, grids: Sequence[tuple[int, int, int]]) -> Tensor | None:
        """The tower goes through a frame window by window, and through each window row by row."""
        places, start = [], 0
        for frames, rows, cols in grids:
            row, col = torch.arange(rows, device="cpu")[:, None], torch.arange(cols, device="cpu")
            windows = -(-cols // self.window)
            window = row // self.window * windows + col // self.window  # [rows, cols]
            frame = window.flatten().argsort(stable=True).argsort()
            places += [frame + start + f * rows * cols for f in range(frames)]
            start += frames * rows * cols
        return torch.cat(places)

    def read_rotary(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self._sections is None:
            return embeddings
        # Up to 4.57 the attention picks its channels of time, row and column itself, from [3, B, n, d].
        sections = 2 * list(self._sections)

        def pick(x: Tensor) -> Tensor:
            return torch.cat([part[i % 3] for i, part in enumerate(x.split(sections, dim=-1))], dim=-1)

        return pick(embeddings[0]), pick(embeddings[1])

    def write_rotary(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self._sections is None:
            return embeddings
        cos, sin = (x.expand(3, *x.shape) for x in embeddings)
        return cos, sin
