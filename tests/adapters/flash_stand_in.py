"""A stand-in for FlashAttention with its exact mask semantics: a 2-D mask or none, causal from the bottom right."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

NAME = "flash_stand_in"


def flash_stand_in(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Unpads by the mask, and is causal from the bottom right: the last query sees all keys of its sample."""
    position_ids = kwargs.get("position_ids")
    assert position_ids is None or bool((position_ids.diff(dim=-1) == 1).all()), "would be taken for packed sequences"
    batch, heads, queries, _ = query.shape
    repeat = heads // key.shape[1]
    out = torch.zeros_like(query)
    if attention_mask is None:
        attention_mask = torch.ones(batch, key.shape[2])
    assert attention_mask.dim() == 2 and attention_mask.shape[1] == key.shape[2], attention_mask.shape
    for b in range(batch):
        keep = attention_mask[b].bool()
        asked = keep[-queries:]
        k = key[b][:, keep].repeat_interleave(repeat, 0)
        v = value[b][:, keep].repeat_interleave(repeat, 0)
        q = query[b][:, asked]
        causal = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
        weights = (q @ k.transpose(1, 2) * scaling).masked_fill(~causal, -torch.inf).softmax(-1)
        row = torch.zeros_like(out[b])
        row[:, asked] = weights @ v
        out[b] = row
    return out.transpose(1, 2), None


def use(model: Any) -> Any:
    """Let the decoder of `model` attend with the stand-in."""
    AttentionInterface.register(NAME, flash_stand_in)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    model.model.language_model.config._attn_implementation = NAME
    return model
