"""A KV cache whose layers have different lengths, and that still answers in the prompt's own coordinates.

All that pruning has to remember stands on the cache's layers, and moves with every operation on their rows.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Attached:
    """Whether a handle is still attached. Copies of a cache ask the handle that filled it."""

    def __init__(self) -> None:
        self.on = True

    def __deepcopy__(self, memo: Any) -> "Attached":
        return self

    def __reduce__(self) -> Any:
        return _detached, ()  # what is loaded belongs to no handle until a pruned model goes on with it


def _detached() -> Attached:
    attached = Attached()
    attached.on = False
    return attached


@dataclass
class Pruned:
    """What a pruned prefill leaves on the layers of a cache that it has filled alike."""

    dropped: int = 0  # columns of the prompt that the layer does not have
    valid: Tensor | None = None  # [B, w] bool, False for padding, of the first w columns; None: there is none
    kept: int = 0  # length, in the prompt's coordinates, up to the last visual token: cannot be cropped below
    attached: Attached = field(default_factory=_detached)
    shift: Tensor | None = None  # [B, 1] by how much position ids are behind the prompt's; None: they are not
    begin: int = 0  # the first of these layers
    padded: bool = False  # of the first layer: some layer has padding
    mask: Tensor | None = None  # [B, 1, 1, at least w] attention mask of one token, made when asked for

    def changed(self, **values: Any) -> "Pruned":
        """Of one layer alone: others share this object."""
        return dataclasses.replace(self, **values, mask=None)


@functools.cache
def pruned_class(kind: Any) -> Any:
    """What a pruned prefill makes of a layer of this class. A layer can become one, and be what it was again."""

    class PrunedLayer(kind):
        """`get_seq_length` counts the tokens of the prompt, dropped ones included: positions go on from there."""

        _layer_type = None  # transformers would register the class under that of its base

        pruned = Pruned()

        def get_seq_length(self, *args: Any) -> int:
            length: int = super().get_seq_length(*args)
            return length and length + self.pruned.dropped

        def get_mask_sizes(self, *args: Any) -> Any:
            # Asked for by every forward. Without hooks masks and later turns would be wrong, seldom with an error.
            if not self.pruned.attached.on:
                raise RuntimeError(
                    "This cache was filled while the model was being pruned and can be continued only under pruning; "
                    "continue it within `vitcop.prune(...)`, or start with a new cache."
                )
            return super().get_mask_sizes(*args)

        def crop(self, *args: int, **kwargs: int) -> None:
            (wanted,) = (*args, *kwargs.values())
            length = self.get_seq_length()
            # Up to 5.1 a length to keep, or minus the number of tokens to remove; later only the latter.
            remove = length - wanted if wanted > 0 or (wanted == 0 and _crop_is_absolute(kind)) else -wanted
            if remove <= 0:
                return
            if length - remove < self.pruned.kept:
                raise ValueError(
                    f"cannot crop to {length - remove} tokens: the first {self.pruned.kept} belong to the pruned prompt"
                )
            for name in ("keys", "values"):
                setattr(self, name, getattr(self, name)[..., :-remove, :])
            if self.pruned.valid is not None:
                valid = self.pruned.valid[:, : self.keys.shape[-2]]
                self.pruned = self.pruned.changed(valid=valid)

        def reset(self) -> None:
            restore(self)
            self.reset()

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self._change(lambda rows: rows[beam_idx.to(rows.device)])

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            self._change(lambda rows: rows[indices.to(rows.device) if isinstance(indices, Tensor) else indices])

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            self._change(lambda rows: rows.repeat_interleave(repeats, dim=0))

        def _change(self, change: Callable[[Tensor], Tensor]) -> None:
            valid, shift = self.pruned.valid, self.pruned.shift
            if valid is not None or shift is not None:
                self.pruned = self.pruned.changed(
                    valid=None if valid is None else change(valid),
                    shift=None if shift is None else change(shift),
                )

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _rebuild, (kind, vars(self))

    PrunedLayer.__name__ = PrunedLayer.__qualname__ = f"Pruned{kind.__name__}"
    return PrunedLayer


def _rebuild(kind: type, state: dict[str, Any]) -> Any:
    layer = object.__new__(pruned_class(kind))
    vars(layer).update(state)
    return layer


def state_of(layer: Any) -> Pruned | None:
    """What a pruned prefill has left on a layer of the cache."""
    return getattr(layer, "pruned", None)


def is_pruned(cache: Any) -> bool:
    """Whether a pruned prefill has filled a cache."""
    layers: Any = getattr(cache, "layers", None)
    return bool(layers) and state_of(layers[0]) is not None


def shift_of(cache: Any) -> Tensor | None:
    """[B, 1] by how much position ids are behind those of the unpruned prompt; None: they are not."""
    state = state_of(cache.layers[0]) if cache is not None and cache.layers else None
    return None if state is None else state.shift


def padding_of(layer: Any) -> Tensor | None:
    """[B, w] bool, False for padding, of the first w columns of a layer; None: there is none."""
    state = state_of(layer)
    return None if state is None else state.valid


def segments(cache: Any, begin: int, end: int) -> list[tuple[int, int]]:
    """First layers, and layers behind the last ones, of those that pruned prefills have filled alike."""
    states = [layer.pruned.begin for layer in cache.layers[begin:end]]
    firsts = [begin + i for i, state in enumerate(states) if i == 0 or state != states[i - 1]]
    return list(zip(firsts, [*firsts[1:], end], strict=False))


def restore(layer: Any) -> None:
    """Make a layer of the cache what it was before a pruned prefill."""
    layer.__class__ = type(layer).__mro__[1]
    vars(layer).pop("pruned", None)


def prune_layers(
    cache: Any, begin: int, end: int, dropped: int, valid: Tensor | None, kept: int, attached: Attached,
    shift: Tensor | None,
) -> None:  # fmt: skip
    """Tell layers that were filled alike that `dropped` more columns of the prompt are not in them, and which of their
    columns are padding."""
    layers = cache.layers[begin:end]
    if not layers:
        return
    before = state_of(layers[0])
    if before is not None:
        dropped, kept = dropped + before.dropped, max(kept, before.kept)
    state = Pruned(dropped, valid, kept, attached, shift, begin)
    own: Any = type(layers[0])
    kind = None if before is not None else pruned_class(own)
    for layer in layers:
        if kind is not None:
            layer.__class__ = kind
        layer.pruned = state


def given(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward: `cache` from transformers 5.24 on, where both names work."""
    found = arguments.get("cache")
    return arguments.get("past_key_values") if found is None else found


def name_for(module: Any) -> str:
    """What the forward of a module calls its cache."""
    return "cache" if "cache" in inspect.signature(type(module).forward).parameters else "past_key_values"


def check_cache(cache: Any) -> None:
    """Refuse caches of fixed shape, and what is no cache of layers, before anything has changed."""
    if cache is None:
        return
    if not hasattr(cache, "layers"):
        raise NotImplementedError(f"past_key_values: expected a DynamicCache, got {type(cache).__name__}")
    from transformers.cache_utils import DynamicLayer

    to_come = getattr(cache, "layer_class_to_replicate", None) or DynamicLayer
    for kind in {type(layer) for layer in cache.layers} or {to_come}:
        if not issubclass(kind, DynamicLayer) or getattr(kind, "is_sliding", False):
            raise NotImplementedError(
                f"past_key_values: expected a DynamicCache, got {type(cache).__name__} of {kind.__name__} (a static or "
                "sliding-window cache cannot hold layers of different lengths)"
            )


def layer_length(cache: Any, layer: int) -> int:
    """Columns that a layer really has."""
    if cache is None or layer >= len(cache.layers):
        return 0
    held = cache.layers[layer]
    state = state_of(held)
    return int(held.get_seq_length()) - (0 if state is None else state.dropped)


def seen(cache: Any) -> int:
    """Length of the cache in the prompt's coordinates."""
    return 0 if cache is None or not cache.layers else int(cache.layers[0].get_seq_length())


def layer_keys(cache: Any, layer: int) -> Tensor | None:
    """Keys `[B, H, n, d]` of a layer, None where they are not kept as one plain tensor on their device."""
    from transformers.cache_utils import DynamicLayer

    if cache is None or layer >= len(cache.layers) or getattr(cache, "offloading", False):
        return None
    held = cache.layers[layer]
    return held.keys if type(held) in (DynamicLayer, pruned_class(DynamicLayer)) else None


def _crop_is_absolute(kind: Any) -> bool:
    return "max_length" in inspect.signature(kind.crop).parameters


def grown_mask(
    before: Tensor | None, length: int, now: Tensor | None, batch: int, queries: int, device: torch.device
) -> Tensor | None:
    """[B, length + queries] key mask of a layer after this forward; None where nothing is padding.

    Args:
        before: `[B, w]` of the columns held before, of which those from w on are no padding. now: `[B, queries]`.
    """
    if before is None and now is None:
        return None
    if now is None:
        assert before is not None
        grown = before.new_ones(batch, length + queries)
        grown[:, : before.shape[1]] = before
        return grown.to(device)
    if before is None:
        return torch.cat([now.new_ones(batch, length), now], dim=1) if length else now
    return torch.cat([grown_mask(before, length, None, batch, 0, device), now], dim=1)  # type: ignore[list-item]


def text_ids(position_ids: Tensor | None) -> Tensor | None:
    """Those of a caller's position ids that count tokens, `[B or 1, q]`; None: there are none."""
    if position_ids is None or position_ids.dim() == 2:
        return position_ids
    return position_ids[0] if position_ids.dim() == 3 and position_ids.shape[0] == 4 else None
