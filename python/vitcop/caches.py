"""A KV cache whose layers have different lengths, and that still answers in the prompt's own coordinates."""

import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

STATE = "_vitcop_state"


class Attached:
    """Whether the handle that last filled a cache is still attached. Copies of the cache ask the same handle."""

    def __init__(self) -> None:
        self.on = True

    def __deepcopy__(self, memo: Any) -> "Attached":
        return self


@dataclass
class CacheState:
    """Kept on a cache that a pruned prefill has filled."""

    dropped: int = 0  # columns of the prompt that layer 0 does not have
    masks: list[Tensor | None] = field(default_factory=list)  # per layer: [B, >= its length] bool, False for padding
    shift: Tensor | None = None  # [B, 1] how far position ids are behind those of the unpruned prompt
    attached: Attached = field(default_factory=Attached)
    pruned: int = 0  # length, in the prompt's coordinates, up to the last visual token: cannot be cropped below


def state_of(cache: Any) -> CacheState | None:
    return getattr(cache, STATE, None)


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
    for kind in [type(layer) for layer in cache.layers] or [to_come]:
        if not issubclass(kind, DynamicLayer) or getattr(kind, "is_sliding", False):
            raise NotImplementedError(
                f"past_key_values: expected a DynamicCache, got {type(cache).__name__} of {kind.__name__} (a static or "
                "sliding-window cache cannot hold layers of different lengths)"
            )


def layer_length(cache: Any, layer: int) -> int:
    """Columns that a layer really has. `Cache.get_seq_length` may be ours, and answers something else."""
    if cache is None or layer >= len(cache.layers):
        return 0
    return int(cache.layers[layer].get_seq_length())


def seen(cache: Any) -> int:
    """Length of the cache in the prompt's coordinates."""
    state = state_of(cache)
    return layer_length(cache, 0) + (0 if state is None else state.dropped)


def layer_keys(cache: Any, layer: int) -> Tensor | None:
    """Keys `[B, H, n, d]` of a layer, None where they are not kept as one plain tensor on their device."""
    from transformers.cache_utils import DynamicLayer

    if cache is None or layer >= len(cache.layers) or getattr(cache, "offloading", False):
        return None
    held = cache.layers[layer]
    return held.keys if type(held) is DynamicLayer else None


def align_batch(tensor: Tensor | None, batch: int) -> Tensor | None:
    """Repeat rows where the cache was repeated since (`batch_repeat_interleave`)."""
    if tensor is None or tensor.shape[0] == batch:
        return tensor
    return tensor.repeat_interleave(batch // tensor.shape[0], dim=0)


def attach_state(cache: Any, state: CacheState) -> None:
    """Make the cache answer `get_seq_length` and `crop` in the prompt's coordinates, and refuse other models."""
    setattr(cache, STATE, state)
    cache.get_seq_length = types.MethodType(_seq_length, cache)
    cache.crop = types.MethodType(_crop, cache)
    cache.reset = types.MethodType(_reset, cache)
    cache.update = types.MethodType(_update, cache)


def _seq_length(self: Any, layer_idx: int = 0) -> int:
    # generate() and the decoder mean the prompt when they ask layer 0, by default or by number.
    return seen(self) if not layer_idx else layer_length(self, layer_idx)


def _update(self: Any, *args: Any, **kwargs: Any) -> Any:
    # Without the hooks, positions and masks would be those of the prompt's length: wrong answers, seldom an error.
    if not getattr(self, STATE).attached.on:
        raise RuntimeError(
            "past_key_values: expected to be continued while the model is being pruned, got a pruned cache after the "
            "pruning was removed"
        )
    return type(self).update(self, *args, **kwargs)


def _crop(self: Any, *args: int, **kwargs: int) -> None:
    (wanted,) = (*args, *kwargs.values())
    length, state = seen(self), state_of(self)
    assert state is not None
    # Up to 5.1, and by the name of the parameter, a length to keep; later minus the number of tokens to remove.
    absolute = wanted > 0 or (wanted == 0 and _crop_is_absolute(type(self)))
    remove = length - wanted if absolute else -wanted
    if remove <= 0:
        return
    if length - remove < state.pruned:
        raise ValueError(f"crop: expected to keep what was pruned, {state.pruned} tokens, got {length - remove}")
    for layer in self.layers:
        layer.crop(-remove)


def _crop_is_absolute(cache_type: type) -> bool:
    return "max_length" in inspect.signature(cache_type.crop).parameters  # type: ignore[attr-defined]


def _reset(self: Any) -> None:
    type(self).reset(self)
    for name in (STATE, "get_seq_length", "crop", "reset", "update"):
        delattr(self, name)


def grown_mask(
    before: Tensor | None, length: int, now: Tensor | None, batch: int, queries: int, device: torch.device
) -> Tensor | None:
    """[B, length + queries] key mask of a layer after this forward; None where nothing is padding."""
    if before is None and now is None:
        return None
    before = align_batch(before, batch)
    if before is None:
        before = torch.ones(batch, length, dtype=torch.bool, device=device)
    if now is None:
        now = torch.ones(batch, queries, dtype=torch.bool, device=device)
    return torch.cat([before[:, :length].to(device), now], dim=1)
