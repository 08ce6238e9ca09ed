"""Keys of a decoder layer and the attention of its last token, from hidden states, without running the layer."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops

from . import parallel

# RMSNorms that are x/rms(x) * weight and nothing else (Gemma's multiplies by 1 + weight).
PLAIN_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3RMSNorm")


def key_norms(layer: nn.Module, hidden: Tensor, heads: str) -> Tensor:
    """[B, V, C] hidden states at a layer's input -> [B, V] norms of their keys, as `vitcop_kernels.key_norms` has them.

    Norm and projection are fused where both are plain; LoRA, quantised, sharded or hooked modules are called.
    """
    attention, norm = _parts(layer)
    projection = attention.k_proj
    if _is_plain(projection, nn.Linear) and type(norm).__name__ in PLAIN_RMS_NORMS and _is_plain(norm, type(norm)):
        weight, rms_weight = projection.weight, norm.weight
        same = weight.dtype == hidden.dtype == rms_weight.dtype and weight.device == hidden.device
        num_heads = weight.shape[0] // attention.head_dim
        if same and getattr(attention, "k_norm", None) is None and parallel.group_of(attention, num_heads) is None:
            return ops.key_proj_norms(
                hidden, weight, projection.bias, rms_weight=rms_weight, rms_eps=norm.variance_epsilon,
                num_heads=num_heads, heads=heads,
            )  # fmt: skip
    keys = _project(attention, norm(hidden), "k").to(hidden.device)
    group = parallel.group_of(attention, keys.shape[1])
    if group is not None:
        return parallel.key_norms(keys, heads, attention.config.num_key_value_heads, group)
    return ops.key_norms(keys, heads=heads)


def last_token_attention(
    layer: nn.Module,
    hidden: Tensor,
    last: Tensor | None,
    embeddings: tuple[Tensor, Tensor],
    past_keys: Tensor | None,
    keys_valid: Tensor | None,
) -> Tensor:
    """Attention that the last token of each sample would pay in a layer, summed over heads.

    Args:
        hidden: [B, n, C] at the layer's input. last: [B] slot of each sample's last token, None: n - 1.
        embeddings: cos and sin, [B or 1, n, d]. past_keys: [B, Hkv, p, d], rotated, or None.
        keys_valid: [B, p + n] bool or None.

    Returns:
        [B, n] float32; each head's softmax is over all p + n keys that the token may see.
    """

    def rows(x: Tensor) -> Tensor:
        return x[:, -1:] if last is None else _at(x, last)

    mask = keys_valid
    if last is not None:  # what comes after the last token is padding, or not to be seen
        past = 0 if past_keys is None else past_keys.shape[2]
        mask = torch.arange(-past, hidden.shape[1], device=hidden.device) <= last[:, None]
        mask = mask if keys_valid is None else mask & keys_valid
    return _received(layer, hidden, rows, embeddings, past_keys, None if mask is None else mask[:, None])


def tail_attention(
    layer: nn.Module,
    hidden: Tensor,
    chosen: Tensor,
    embeddings: tuple[Tensor, Tensor],
    past_keys: Tensor | None,
    keys_valid: Tensor | None,
) -> Tensor:
    """Attention that the chosen ones of the last W tokens would pay in a layer, summed over heads and over them.

    Args:
        chosen: [B, W] bool. Everything else is as for `last_token_attention`.
    """
    window, past = chosen.shape[1], 0 if past_keys is None else past_keys.shape[2]
    column = torch.arange(-past, hidden.shape[1], device=hidden.device)
    mask = chosen[:, :, None] & (column <= column[-window:, None])  # [B, W, p + n]
    if keys_valid is not None:
        mask = mask & keys_valid[:, None]
    return _received(layer, hidden, lambda x: x[:, -window:], embeddings, past_keys, mask)


def _received(
    layer: nn.Module,
    hidden: Tensor,
    rows: Callable[[Tensor], Tensor],
    embeddings: tuple[Tensor, Tensor],
    past_keys: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """[B, n] attention that `rows` of the sequence, [B, n, C] -> [B, M, C], pay under `mask [B, M, p + n]`."""
    attention, norm = _parts(layer)
    normed = norm(hidden).to(hidden.device)  # a layer on another device leaves its results there
    keys = _project(attention, normed, "k").to(hidden.device)  # [B, Hkv, n, d]
    query = _project(attention, rows(normed), "q").to(hidden.device)
    cos, sin = (t.expand(hidden.shape[0], -1, -1) for t in embeddings)
    rotate = _rotation(attention)
    keys = rotate(keys, keys, cos, sin)[1]
    query = rotate(query, query, rows(cos), rows(sin))[0]
    if past_keys is not None:
        keys = torch.cat([past_keys.to(keys), keys], dim=2)
    received = ops.attention_saliency(query, keys.to(query.dtype), scale=attention.scaling, mask=mask)
    group = parallel.group_of(attention, keys.shape[1])
    if group is not None:
        received = parallel.sum_over_heads(received, group)
    return received[:, keys.shape[2] - hidden.shape[1] :]


def _rotation(attention: nn.Module) -> Any:
    """Each family has its own `apply_rotary_pos_emb`; those with another one besides take plain cos and sin here."""
    own = sys.modules[type(attention).__module__]
    if hasattr(own, "apply_rotary_pos_emb"):
        return own.apply_rotary_pos_emb
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    return apply_rotary_pos_emb


def _parts(layer: nn.Module) -> tuple[Any, Any]:
    return layer.self_attn, layer.input_layernorm


def _project(attention: Any, hidden: Tensor, name: str) -> Tensor:
    """[B, n, C] -> [B, H, n, d] queries ("q") or keys ("k") before RoPE, through the modules."""
    heads = getattr(attention, f"{name}_proj")(hidden).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    normed: Tensor = heads if norm is None else norm(heads)
    return normed.transpose(1, 2)


def _at(x: Tensor, slot: Tensor) -> Tensor:
    """[B, n, C], [B] -> [B, 1, C]"""
    return x.gather(1, slot[:, None, None].expand(-1, 1, x.shape[-1]))


def _is_plain(module: nn.Module, kind: type) -> bool:
    """Calling it is nothing but its forward, on weights that are ordinary tensors."""
    if type(module) is not kind or "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks:
        return False
    weight: Any = module.weight
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
