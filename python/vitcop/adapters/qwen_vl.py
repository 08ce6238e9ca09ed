"""What Qwen's vision language models share: patches merged by squares, no [CLS], positions of (time, row, column)."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops
from vitcop.engine.decoder_keys import unwrapped
from vitcop.engine.hooks import Seen, Uncompiled, uncopied, untraced
from vitcop.engine.layout import grid_positions
from vitcop.methods.base import Program

from .base import Adapter, Encoding, Removable
from .watched import Watched, WatchedLayers


@dataclass
class MergedPatches:
    """What a block of the vision tower computed for S patches, of which every `unit` consecutive ones are a token."""

    qkv: Tensor  # [S, 3*H*d] before the rotary embedding
    rotary: tuple[Tensor, Tensor]  # cos, sin [S, d]
    rotate: Callable[..., tuple[Tensor, Tensor]]
    num_heads: int
    scale: float
    unit: int
    grids: list[tuple[int, int, int]]  # of each image or video: frames, rows and columns of tokens
    place: Tensor | None  # [T] where the tower has the token of each place in raster order; None: there
    kind: str

    @property
    def image_tokens(self) -> Sequence[int]:
        return [math.prod(grid) for grid in self.grids]

    def segments(self) -> Tensor:
        """The frames: the tower attends within them."""
        return torch.cat([torch.arange(f, device="cpu").repeat_interleave(rows * cols) for f, rows, cols in self.grids])

    def saliency(self) -> Tensor:
        """The mean attention that a token's patches receive from the patches of their frame, summed over heads."""
        query, key = self.qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(1)[:2]  # [S, H, d]
        query, key = self.rotate(query, key, *self.rotary)
        received, start = [], 0
        for frames, rows, cols in self.grids:
            size = rows * cols * self.unit
            end = start + frames * size
            q, k = (
                t[start:end].unflatten(0, (frames, size)).transpose(1, 2) for t in (query, key)
            )  # [frames, H, .., d]
            received.append(ops.attention_saliency(q, k, scale=self.scale).flatten() / size)
            start = end
        return self._tokens(torch.cat(received))

    def features(self) -> Tensor:
        """[T, H*d] float32: the mean key of a token's patches, before the rotary embedding."""
        return self._tokens(self.qkv.chunk(3, dim=-1)[1])

    def positions(self) -> Tensor:
        device = self.qkv.device
        return torch.cat([grid_positions(r, c, device).repeat(frames, 1) for frames, r, c in self.grids])

    def _tokens(self, patches: Tensor) -> Tensor:
        """[S, ...] -> [T, ...]: means over the patches of each token, tokens in raster order."""
        dtype = torch.promote_types(patches.dtype, torch.float32)
        tokens = patches.unflatten(0, (-1, self.unit)).mean(1, dtype=dtype)
        return tokens if self.place is None else tokens[self.place]


class QwenVLAdapter(Adapter):
    """Position ids count rows and columns instead of tokens: dropping tokens leaves those of all others as they are."""

    tower = "visual"
    counts_tokens = False

    @property
    def block(self) -> Any:
        """The last block of the tower that attends to whole frames."""
        return self.owner.visual.blocks[-1]

    def fit(self, program: Program) -> Program:
        if program.positions == "released":
            raise NotImplementedError(
                "positions: expected 'compact' or 'original' where position ids are (time, row, column), got 'released'"
            )
        if program.positions == "original":
            return program
        note = "position ids are (time, row, column): survivors keep theirs, there is nothing to make contiguous"
        return replace(program, positions="original", notes=[*program.notes, note])

    def text_positions(self, position_ids: Tensor | None) -> Tensor | None:
        return None  # never counted, never shifted

    def place(self, grids: Sequence[tuple[int, int, int]]) -> Tensor | None:
        """[T] on the CPU: where the tower has the token of each place in raster order. None: there."""
        return None

    def begin(self, encoding: Encoding) -> None:
        self._watched.add(0)

    def watch_tower(self) -> Iterable[Removable]:
        seen: Seen[Any] = Seen()
        rotate = sys.modules[type(unwrapped(self.block).attn).__module__].apply_rotary_pos_emb_vision
        merge = self.owner.visual.spatial_merge_size

        def before_attention(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.put("rotary", kwargs["position_embeddings"])

        def keep_qkv(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.put("qkv", output.detach())

        def after_tower(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            qkv, rotary = seen.take("qkv"), seen.take("rotary")
            if not self.encodings:
                return
            encoding, attention = self.encodings[-1], unwrapped(self.block).attn
            grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
            grids = [(frames, rows // merge, cols // merge) for frames, rows, cols in grid.tolist()]
            place = self.place(grids)
            encoding.tokens = MergedPatches(
                qkv, rotary, rotate, attention.num_heads, attention.scaling, merge * merge, grids,
                None if place is None else place.to(qkv.device, non_blocking=True), encoding.kind,
            )  # fmt: skip

        def watch(_: int) -> Watched:
            block = self.block
            attention = unwrapped(block).attn
            ways: list[Callable[[], Any]] = [
                lambda: Uncompiled(block),
                lambda: attention.register_forward_pre_hook(uncopied(before_attention), with_kwargs=True),
                lambda: attention.qkv.register_forward_hook(uncopied(keep_qkv)),
            ]
            return Watched((block, attention, attention.qkv), ways)

        self._watched = WatchedLayers(watch)
        yield self._watched
        self._watched.add(0)
        yield self.owner.visual.register_forward_hook(untraced(after_tower), with_kwargs=True)
