"""Attention masks for layers whose keys are not the prompt any more, as each attention implementation wants them."""

import torch
from torch import Tensor

from .layout import Prompt


def mask_kind(implementation: str) -> str:
    """ "eager", "sdpa" or "flash": which form of mask an attention implementation takes.

    Implementations registered under another name are recognised by the mask function registered with them.
    """
    if "paged" not in implementation and "flex" not in implementation:
        if "flash" in implementation:
            return "flash"
        if implementation in ("eager", "sdpa"):
            return implementation
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

        known = MASKS.get(implementation)
        for kind, name in (("eager", "eager"), ("sdpa", "sdpa"), ("flash", "flash_attention_2")):
            if known is not None and known is MASKS[name]:
                return kind
    raise NotImplementedError(
        f"attn_implementation: expected 'eager', 'sdpa' or a flash attention, got {implementation!r}"
    )


def causal_mask(
    kind: str, keys_valid: Tensor | None, batch: int, queries: int, keys: int, dtype: torch.dtype, device: torch.device,
    always: bool = False,
) -> Tensor | None:  # fmt: skip
    """The mask for `queries` tokens that are the last of `keys` ones.

    Args:
        keys_valid: [B, keys] bool, False for padding; None: no padding.
        always: never None.

    Returns:
        "flash": [B, keys] or None. "sdpa": [B, 1, queries, keys] bool, or None where SDPA's own causal flag does it.
        "eager": the same, additive in `dtype`.
    """
    if kind == "flash":
        return keys_valid
    if keys_valid is None and not always and (queries == 1 or (kind == "sdpa" and queries == keys)):
        return None
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    allowed = (key <= query)[None, None]  # [1, 1, queries, keys]
    if keys_valid is not None:
        # Padding attends to itself: a row without a key would become NaN.
        allowed = (allowed & keys_valid[:, None, None, :]) | (key == query)[None, None]
    else:
        allowed = allowed.expand(batch, 1, queries, keys)
    return allowed if kind == "sdpa" else additive(allowed, dtype)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attention is allowed, the smallest number where it is not."""
    return torch.zeros((), dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def read_padding(
    mask: Tensor | None, prompt: Prompt | None, batch: int, queries: int, device: torch.device
) -> Tensor | None:
    """[B, queries] bool, False for padding; None: there is none."""
    if mask is None or queries == 1:  # a single token is no padding
        return None
    if prompt is not None and prompt.kinds.shape == (batch, queries):
        return None if prompt.valid is None else torch.from_numpy(prompt.valid).to(device)
    valid = mask[:, -queries:].to(device, torch.bool)
    return None if bool(valid.all()) else valid


def read_history(mask: Tensor | None, seen: int, queries: int, device: torch.device) -> Tensor | None:
    """[B, seen] padding of earlier turns that were not pruned; what was pruned keeps its masks on the cache."""
    if not seen or mask is None:
        return None
    earlier = mask[:, :-queries].to(device, torch.bool)
    return None if bool(earlier.all()) else earlier
