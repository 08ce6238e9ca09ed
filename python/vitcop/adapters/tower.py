"""A vision tower in the manner of CLIP or SigLIP: tiles in, patches out, and what one of its layers says about them."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops
from vitcop.engine.hooks import plain, untraced
from vitcop.engine.layout import grid_positions

from .base import Adapter, Encoding, Removable, feature_layer, tower_layers
from .watched import WatchedLayer, WatchedLayers, detached


@dataclass
class TowerRun:
    """What a layer of the tower computed for n tiles (images, frames) of N patches."""

    query: Tensor  # [n, M, H*d] of [CLS] (M = 1); of all patches (M = N) where the tower has no [CLS]
    keys: Tensor  # [n, N or 1+N, H*d] of [CLS], if there is one, and the patches
    num_heads: int
    scale: float
    has_cls: bool
    output: Tensor | None = None  # [n, N or 1+N, D] what the layer made of them; None: not what is projected

    @property
    def patches(self) -> int:
        """N"""
        return self.keys.shape[1] - self.has_cls

    def saliency(self) -> Tensor:
        """[n, N] Eq. 1: softmax over [CLS] and patches, summed over heads; [CLS]' own share is left out afterwards.

        Without [CLS], the attention that a patch receives from the patches of its tile, averaged over them and the
        heads (as VisionZip has it).
        """
        query, keys = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (self.query, self.keys))
        received = ops.attention_saliency(query, keys, scale=self.scale)
        return received[:, 1:] if self.has_cls else received / (query.shape[1] * query.shape[2])

    def features(self) -> Tensor:
        """[n, N, H*d]"""
        return self.keys[:, 1:] if self.has_cls else self.keys

    def states(self) -> Tensor:
        """[n, N or 1+N, D]"""
        if self.output is None:
            raise NotImplementedError(
                "vision_feature_layer: expected one layer, for a method that works before the projector, got several"
            )
        return self.output


@dataclass
class TileTokens:
    """Visual tokens made of the patches of tiles. Implements `VisualTokens` and `TowerTokens`."""

    run: TowerRun
    kind: str
    image_tokens: Sequence[int]
    part: Tensor  # [T] int64, on the CPU: segment within the image
    place: Tensor  # [T, 2]
    arrange: Callable[[Tensor], Tensor] | None = None
    """[n, N, D] of the tower -> [T, D] of the prompt, by the model's own code; NaN for tokens that no patch made. None:
    the tokens are the patches."""

    def segments(self) -> Tensor:
        return self.part

    def saliency(self) -> Tensor:
        saliency = self.run.saliency()
        return saliency.flatten() if self.arrange is None else self.arrange(saliency[..., None])[:, 0]

    def features(self) -> Tensor:
        return self._arranged(self.run.features())

    def positions(self) -> Tensor:
        return self.place

    @property
    def num_heads(self) -> int:
        return self.run.num_heads

    def states(self) -> Tensor:
        states = self.run.states()
        return self._arranged(states[:, 1:] if self.run.has_cls else states)

    def _arranged(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1) if self.arrange is None else self.arrange(x)

    def cls_states(self) -> Tensor | None:
        return None  # a tile, or a frame, has its own, and none is that of the image


@functools.lru_cache(maxsize=64)
def _whole_tiles(tiles: int, rows: int, cols: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Segments and positions of tokens that are the patches of so many images."""
    with torch.inference_mode(False):  # they may serve a forward with gradients later
        part = torch.zeros(tiles * rows * cols, dtype=torch.int64, device="cpu")
        return part, grid_positions(rows, cols, device).repeat(tiles, 1)


class TowerAdapter(Adapter):
    """A family with a CLIP or SigLIP tower, whose tiles are images and whose patches are visual tokens as they are."""

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        tower = self.owner.vision_tower
        inner = getattr(tower, "vision_model", tower)
        if not (hasattr(inner, "embeddings") and hasattr(inner, "encoder")):
            raise NotImplementedError(f"vision_tower: expected CLIP or SigLIP, got {type(tower).__name__}")
        self.has_cls = getattr(inner.embeddings, "class_embedding", None) is not None
        self.check_options({})
        attention = self._attention(self._layer({})[0])
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "num_heads", "scale")):
            raise NotImplementedError(
                f"vision_tower: expected CLIP or SigLIP, got attention of {type(attention).__name__}"
            )
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid = side, side
        self._watched = WatchedLayers(self._watch)

    def tokens(self, run: TowerRun) -> TileTokens:
        """The visual tokens of a run whose tiles are images."""
        tiles, patches = run.keys.shape[0], run.patches
        return TileTokens(run, "image", [patches] * tiles, *_whole_tiles(tiles, *self.grid, run.keys.device))

    def project(self, states: Tensor) -> Tensor:
        projected: Tensor = self.owner.multi_modal_projector(states)
        return projected if self.embedding_scale == 1 else projected * self.embedding_scale

    def check_options(self, arguments: dict[str, Any]) -> None:
        strategy = self.option(arguments, "vision_feature_select_strategy")
        if strategy != ("default" if self.has_cls else "full"):
            expected = "'default' (patches without [CLS])" if self.has_cls else "'full' (the tower has no [CLS])"
            raise NotImplementedError(f"vision_feature_select_strategy: expected {expected}, got {strategy!r}")
        self._layer(arguments)

    def _layer(self, arguments: dict[str, Any]) -> tuple[int, bool]:
        """The layer to watch, and whether it is the only one whose output is used."""
        wanted = self.option(arguments, "vision_feature_layer")
        return feature_layer(tower_layers(self.owner.vision_tower), wanted), isinstance(wanted, int) or len(wanted) == 1

    def _attention(self, number: int) -> Any:
        return plain(tower_layers(self.owner.vision_tower)[number]).self_attn

    def _watch(self, number: int) -> WatchedLayer:
        attention = self._attention(number)

        def rows(query: Tensor) -> Tensor:
            # A row of its own: a view would keep the queries of all patches.
            return detached(query)[:, :1].clone() if self.has_cls else detached(query)

        return WatchedLayer(
            tower_layers(self.owner.vision_tower)[number], attention.q_proj, attention.k_proj, rows
        )  # fmt: skip

    def begin(self, encoding: Encoding) -> None:
        self._watched.add(self._layer(encoding.arguments)[0])

    def watch_tower(self) -> Iterable[Removable]:
        def after_tower(module: nn.Module, args: Any, output: Any) -> None:
            if not self.encodings:
                return self._watched.forget()
            number, one_layer = self._layer(self.encodings[-1].arguments)
            query, keys, states = self._watched.take(number)
            attention = self._attention(number)
            run = TowerRun(
                query, keys, attention.num_heads, attention.scale, self.has_cls, states if one_layer else None
            )
            (rows, cols), patches = self.grid, run.patches
            if patches != rows * cols:
                raise NotImplementedError(
                    f"pixel_values: expected images of {rows}x{cols} patches, got {patches} patches"
                )
            self.encodings[-1].tokens = self.tokens(run)

        yield self._watched
        self._watched.add(self._layer({})[0])
        yield self.owner.vision_tower.register_forward_hook(untraced(after_tower))
