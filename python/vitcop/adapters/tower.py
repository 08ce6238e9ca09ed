"""A vision tower in the manner of CLIP or SigLIP: tiles in, patches out, and what one of its layers says about them."""

import functools
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops
from vitcop.engine.hooks import Seen, Uncompiled, uncopied, untraced
from vitcop.engine.layout import grid_positions

from .base import VISION, Adapter, Removable, VisualTokens, feature_layer, tower_layers


@dataclass
class TowerRun:
    """What a layer of the tower computed for n tiles (images, frames) of N patches."""

    query: Tensor  # [n, M, H*d] of [CLS] (M = 1); of all patches (M = N) where the tower has no [CLS]
    keys: Tensor  # [n, N or 1+N, H*d] of [CLS], if there is one, and the patches
    num_heads: int
    scale: float
    has_cls: bool
    output: Tensor | None = None  # [n, N or 1+N, D] what the layer made of them; None: not what is projected

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
    arrange: Callable[[Tensor], Tensor]
    """[n, N, D] of the tower -> [T, D] of the prompt, by the model's own code; NaN for tokens that no patch made."""

    def segments(self) -> Tensor:
        return self.part

    def saliency(self) -> Tensor:
        return self.arrange(self.run.saliency()[..., None])[:, 0]

    def features(self) -> Tensor:
        return self.arrange(self.run.features())

    def positions(self) -> Tensor:
        return self.place

    @property
    def num_heads(self) -> int:
        return self.run.num_heads

    def states(self) -> Tensor:
        states = self.run.states()
        return self.arrange(states[:, 1:] if self.run.has_cls else states)

    def cls_states(self) -> Tensor | None:
        return None  # a tile, or a frame, has its own, and none is that of the image


class TowerAdapter(Adapter):
    """A family with a CLIP or SigLIP tower, whose tiles are images and whose patches are visual tokens as they are."""

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        tower = self.owner.vision_tower
        inner = getattr(tower, "vision_model", tower)
        if not (hasattr(inner, "embeddings") and hasattr(inner, "encoder")):
            raise NotImplementedError(f"vision_tower: expected CLIP or SigLIP, got {type(tower).__name__}")
        self.has_cls = getattr(inner.embeddings, "class_embedding", None) is not None
        strategy = self.config.vision_feature_select_strategy
        if strategy != ("default" if self.has_cls else "full"):
            expected = "'default' (patches without [CLS])" if self.has_cls else "'full' (the tower has no [CLS])"
            raise NotImplementedError(f"vision_feature_select_strategy: expected {expected}, got {strategy!r}")
        self.layer = feature_layer(tower_layers(tower), self.config.vision_feature_layer)
        self.attention = self.layer.self_attn
        if not all(hasattr(self.attention, name) for name in ("q_proj", "k_proj", "num_heads", "scale")):
            raise NotImplementedError(
                f"vision_tower: expected CLIP or SigLIP, got attention of {type(self.attention).__name__}"
            )
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid = side, side

    def tokens(self, run: TowerRun) -> TileTokens:
        """The visual tokens of a run whose tiles are images."""
        tiles, patches = run.features().shape[:2]
        place = grid_positions(*self.grid, run.keys.device).repeat(tiles, 1)
        part = torch.zeros(tiles * patches, dtype=torch.int64)
        return TileTokens(run, "image", [patches] * tiles, part, place, lambda x: x.flatten(0, 1))

    def project(self, states: Tensor) -> Tensor:
        projected: Tensor = self.owner.multi_modal_projector(states)
        return projected

    def watch(self, tower_outputs: MutableSequence[VisualTokens]) -> Iterable[Removable]:
        seen: Seen[Tensor] = Seen()
        one_layer = isinstance(self.config.vision_feature_layer, int)

        def keep_query(module: nn.Module, args: Any, output: Tensor) -> None:
            # A row of its own: a view would keep the queries of all patches.
            seen.put("query", output[:, :1].detach().clone() if self.has_cls else output.detach())

        def keep_keys(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.put("keys", output.detach())

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            seen.put("output", output[0] if isinstance(output, tuple) else output)

        def after_tower(module: nn.Module, args: Any, output: Any) -> None:
            attention = self.attention
            query, keys, states = seen.take("query"), seen.take("keys"), seen.take("output") if one_layer else None
            run = TowerRun(query, keys, attention.num_heads, attention.scale, self.has_cls, states)
            (rows, cols), patches = self.grid, run.features().shape[1]
            if patches != rows * cols:
                raise NotImplementedError(
                    f"pixel_values: expected images of {rows}x{cols} patches, got {patches} patches"
                )
            tokens = self.tokens(run)
            tower_outputs.append(tokens)
            if isinstance(output, dict):
                output[VISION] = tokens

        yield Uncompiled(self.layer)
        yield self.attention.q_proj.register_forward_hook(uncopied(keep_query))
        yield self.attention.k_proj.register_forward_hook(uncopied(keep_keys))
        if one_layer:
            yield self.layer.register_forward_hook(uncopied(keep_output))
        yield self.owner.vision_tower.register_forward_hook(untraced(after_tower))


class Replacement:
    """A method of one instance called through `wrapper(original, *args, **kwargs)`, until `remove()`.

    Who has replaced it again since keeps what he put there, and the original behind it.
    """

    def __init__(self, instance: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._attributes, self._name = vars(instance), name
        self._before = self._attributes.get(name)  # not the class's own
        original = getattr(instance, name)
        # generate() reads the signature to know what to pass on.

        def call(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs) if self._active else original(*args, **kwargs)

        self._active = True
        self._attributes[name] = self._replacement = functools.wraps(original)(untraced(call))

    def remove(self) -> None:
        self._active = False
        if self._attributes.get(self._name) is not self._replacement:
            return
        if self._before is None:
            self._attributes.pop(self._name, None)
        else:
            self._attributes[self._name] = self._before
