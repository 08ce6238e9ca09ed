"""Keys of a decoder layer and the attention of its last token, from hidden states, without running the layer.

Which layers these are right for is what `adapters/decoders.py` checks.
"""

import copy
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops

from . import parallel

# RMSNorms that are x/rms(x) * weight and nothing else (Gemma's multiplies by 1 + weight).
PLAIN_RMS_NORMS = (
    "LlamaRMSNorm", "MistralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3RMSNorm",
)  # fmt: skip

SCALED: "weakref.WeakKeyDictionary[nn.Module, tuple[int, float]]" = weakref.WeakKeyDictionary()
"""Attention whose rotary embedding scales a part of each key: its channels and the factor. (A factor for whole keys
leaves their order.)"""


def key_norms(layer: nn.Module, hidden: Tensor, heads: str) -> Tensor:
    """[B, V, C] hidden states at a layer's input -> [B, V] norms of their keys, as `vitcop_kernels.key_norms` has them.

    Norm and projection are fused where both are plain; LoRA, quantised, sharded or hooked modules are called.
    """
    attention, norm = parts(layer)
    fused = _plain_key_projection(attention, norm, hidden)
    if fused is not None:
        weight, bias = fused
        return ops.key_proj_norms(
            hidden, weight, bias, rms_weight=norm.weight, rms_eps=norm.variance_epsilon,
            num_heads=weight.shape[0] // attention.head_dim, heads=heads,
        )  # fmt: skip
    keys = _project(attention, norm(hidden), "k").to(hidden.device)
    if attention in SCALED:
        channels, factor = SCALED[attention]
        keys = torch.cat([keys[..., :channels] * factor, keys[..., channels:]], dim=-1)
    group = parallel.group_of(attention, keys.shape[1])
    if group is not None:
        return parallel.key_norms(keys, heads, attention.config.num_key_value_heads, group)
    return ops.key_norms(keys, heads=heads)


def _plain_key_projection(attention: Any, norm: Any, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight [H*d, C] and bias of the keys where they are nothing but a projection of an RMSNorm; else None."""
    projection, rows = _projection(attention, "k")
    kind = type(norm)
    if not (_is_plain(projection, nn.Linear) and kind.__name__ in PLAIN_RMS_NORMS and _is_plain(norm, kind)):
        return None
    weight, bias = projection._parameters["weight"], projection._parameters["bias"]
    if rows != _ALL:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if not (weight.dtype == hidden.dtype == norm._parameters["weight"].dtype and weight.device == hidden.device):
        return None
    if attention in SCALED or _clip(attention) is not None or attention._modules.get("k_norm") is not None:
        return None
    if parallel.group_of(attention, weight.shape[0] // attention.head_dim) is not None:
        return None
    return weight, bias


def last_token_attention(
    layer: nn.Module,
    hidden: Tensor,
    last: Tensor | None,
    embeddings: tuple[Tensor, Tensor],
    past: int,
    keys: Tensor | None,
    keys_valid: Tensor | None,
) -> Tensor:
    """Attention that the last token of each sample would pay in a layer, summed over heads.

    Args:
        hidden: [B, n, C] at the layer's input. last: [B] slot of each sample's last token, None: n - 1.
        embeddings: cos and sin, [B or 1, n, d]. past: p, keys of earlier turns. keys: [B, Hkv, p + n, d], rotated, as
            the layer has left them in the cache; or those of the p earlier ones, None where p is 0.
        keys_valid: [B, p + n] bool or None.

    Returns:
        [B, n] float32; each head's softmax is over all p + n keys that the token may see.
    """

    def rows(x: Tensor) -> Tensor:
        return x[:, -1:] if last is None else _at(x, last)

    mask = keys_valid
    if last is not None:  # what comes after the last token is padding, or not to be seen
        mask = torch.arange(-past, hidden.shape[1], device=hidden.device) <= last[:, None]
        mask = mask if keys_valid is None else mask & keys_valid
    return _received(layer, hidden, rows, embeddings, past, keys, None if mask is None else mask[:, None])


def tail_attention(
    layer: nn.Module,
    hidden: Tensor,
    chosen: Tensor,
    embeddings: tuple[Tensor, Tensor],
    past: int,
    keys: Tensor | None,
    keys_valid: Tensor | None,
) -> Tensor:
    """Attention that the chosen ones of the last W tokens would pay in a layer, summed over heads and over them.

    Args:
        chosen: [B, W] bool. Everything else is as for `last_token_attention`.
    """
    window = chosen.shape[1]
    column = torch.arange(-past, hidden.shape[1], device=hidden.device)
    mask = chosen[:, :, None] & (column <= column[-window:, None])  # [B, W, p + n]
    if keys_valid is not None:
        mask = mask & keys_valid[:, None]
    return _received(layer, hidden, lambda x: x[:, -window:], embeddings, past, keys, mask)


def _received(
    layer: nn.Module,
    hidden: Tensor,
    rows: Callable[[Tensor], Tensor],
    embeddings: tuple[Tensor, Tensor],
    past: int,
    keys: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """[B, n] attention that `rows` of the sequence, [B, n, C] -> [B, M, C], pay under `mask [B, M, p + n]`."""
    attention, _ = parts(layer)
    if keys is not None and keys.shape[2] == past + hidden.shape[1]:
        query = queries(layer, hidden, rows, embeddings)
    else:
        query, own = query_and_keys(layer, hidden, rows, embeddings)
        keys = own if keys is None else torch.cat([keys.to(own), own], dim=2)
    received = ops.attention_saliency(query, keys.to(query.dtype), scale=attention.scaling, mask=mask)
    group = parallel.group_of(attention, keys.shape[1])
    if group is not None:
        received = parallel.sum_over_heads(received, group)
    return received[:, keys.shape[2] - hidden.shape[1] :]


def queries(
    layer: nn.Module, hidden: Tensor, rows: Callable[[Tensor], Tensor], embeddings: tuple[Tensor, Tensor]
) -> Tensor:
    """[B, H, M, d] queries of `rows`, as the attention of the layer compares them."""
    attention, norm = parts(layer)
    return _queries(attention, norm(rows(hidden)).to(hidden.device), rows, embeddings)


def query_and_keys(
    layer: nn.Module, hidden: Tensor, rows: Callable[[Tensor], Tensor], embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """[B, H, M, d] queries of `rows` and [B, Hkv, n, d] keys, as the attention of the layer compares them."""
    attention, norm = parts(layer)
    normed = norm(hidden).to(hidden.device)  # a layer on another device leaves its results there
    keys = _project(attention, normed, "k").to(hidden.device)
    if getattr(attention, "use_rope", True):
        cos, sin = (t.expand(hidden.shape[0], -1, -1) for t in embeddings)
        keys = _rotation(attention)(keys, keys, cos, sin)[1]
    return _queries(attention, rows(normed), rows, embeddings), keys


def _queries(
    attention: Any, normed: Tensor, rows: Callable[[Tensor], Tensor], embeddings: tuple[Tensor, Tensor]
) -> Tensor:
    """[B, H, M, d] from `rows` of the normed hidden states, `[B, M, C]`."""
    query = _project(attention, normed, "q").to(normed.device)
    if getattr(attention, "use_rope", True):
        cos, sin = (rows(t.expand(normed.shape[0], -1, -1)) for t in embeddings)
        query = _rotation(attention)(query, query, cos, sin)[0]
    return query


class Kept:
    """A layer as it is now, for when it will be sharded again: its norm, and what makes queries and keys.

    To gather it again later would need all ranks, of which some may have nothing to choose.
    """

    def __init__(self, layer: nn.Module) -> None:
        attention, norm = parts(layer)
        self.input_layernorm = _copied(norm)
        self.self_attn = copy.copy(attention)
        self.self_attn._modules = {
            name: _copied(module) if name in ("q_proj", "k_proj", "qkv_proj", "q_norm", "k_norm") else module
            for name, module in attention._modules.items()
        }
        if attention in SCALED:
            SCALED[self.self_attn] = SCALED[attention]


def kept(layer: nn.Module) -> Any:
    """A layer whose queries and keys can be computed after it has run."""
    if is_gathered(layer):
        return Kept(layer)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return layer
    return Kept(layer) if any(map(is_fsdp, (layer, *layer.modules()))) else layer


def is_gathered(layer: nn.Module) -> bool:
    """Whether hooks may bring the weights of a whole layer before its forward, and take them away again behind it."""
    each = (layer, unwrapped(layer))
    return any(getattr(m, "_z3_leaf", False) or (m._forward_pre_hooks and m._forward_hooks) for m in each)


def shape_of(norm: Any) -> torch.Size:
    """Of its weight, also while DeepSpeed has it elsewhere; empty where nothing says it."""
    weight = norm.weight
    if weight.numel():
        return weight.shape
    return torch.Size(getattr(weight, "ds_shape", ()))


def is_fsdp(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule) or "_fsdp_wrapped_module" in module._modules


def _copied(module: Any) -> Any:
    """With weights of its own; FSDP's views of what it has gathered are no parameters. Modules that gather weights by
    themselves, or whose weights are no plain numbers, stay what they are."""
    if not all(w is None or (w.numel() and w.is_floating_point()) for w in module._parameters.values()):
        return module

    def copied(values: dict[str, Any]) -> dict[str, Any]:
        return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in values.items()}

    new = copy.copy(module)
    vars(new).update(copied(vars(module)))
    weights = copied(module._parameters).items()
    new._parameters = {n: w if w is None else nn.Parameter(w, requires_grad=False) for n, w in weights}
    new._modules = {name: child if child is None else _copied(child) for name, child in module._modules.items()}
    return new


def _rotation(attention: nn.Module) -> Any:
    """Each family has its own `apply_rotary_pos_emb`; those with another one besides take plain cos and sin here."""
    own = sys.modules[type(attention).__module__]
    if hasattr(own, "apply_rotary_pos_emb"):
        return own.apply_rotary_pos_emb
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    return apply_rotary_pos_emb


def unwrapped(module: Any) -> Any:
    """The module in those that wrap it to compile, checkpoint or shard it."""
    for name in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        if name in getattr(module, "_modules", ()):
            return unwrapped(module._modules[name])
    return module


def in_fsdp(module: Any) -> Any:
    """The module that FSDP1 calls after it has gathered its weights."""
    return in_fsdp(module._fsdp_wrapped_module) if "_fsdp_wrapped_module" in module._modules else module


def parts(layer: nn.Module) -> tuple[Any, Any]:
    """The attention of a layer and the norm in front of it, which layers with norms behind it (OLMo-2) do not have."""
    inner = unwrapped(layer)
    attention, norm = unwrapped(inner.self_attn), getattr(inner, "input_layernorm", None)
    return attention, nn.Identity() if norm is None else norm


_ALL = slice(None)


def _projection(attention: Any, name: str) -> tuple[Any, slice]:
    """The module that makes queries ("q") or keys ("k"), and which rows of its output they are."""
    modules = attention._modules
    if "qkv_proj" not in modules:
        return modules[f"{name}_proj"], _ALL
    queries = attention.config.num_attention_heads * attention.head_dim
    keys = attention.config.num_key_value_heads * attention.head_dim
    return attention.qkv_proj, slice(0, queries) if name == "q" else slice(queries, queries + keys)


def _project(attention: Any, hidden: Tensor, name: str) -> Tensor:
    """[B, n, C] -> [B, H, n, d] queries ("q") or keys ("k") before RoPE, through the modules."""
    projection, rows = _projection(attention, name)
    sharded = any(map(parallel.is_sharded, projection.parameters(recurse=False)))
    if sharded and not parallel.is_shared(projection) and parallel.several_processes():
        raise NotImplementedError(
            f"FSDP: expected whole decoder layers to be sharded, so that {name}_proj is gathered where its layer "
            "begins, got one that is sharded by itself"
        )
    if rows != _ALL and _is_plain(projection, nn.Linear):
        bias = projection.bias
        states = nn.functional.linear(hidden, projection.weight[rows], None if bias is None else bias[rows])
    else:
        states = projection(hidden)[..., rows]
    norm: Any = getattr(attention, f"{name}_norm", None)
    whole = norm is not None and (not hasattr(norm, "weight") or shape_of(norm) == states.shape[-1:])
    heads = (norm(states) if whole else states).unflatten(-1, (-1, attention.head_dim))
    if norm is not None and not whole:
        heads = norm(heads)
    clip = _clip(attention)
    clipped: Tensor = heads if clip is None else heads.clamp(-clip, clip)
    return clipped.transpose(1, 2)


def _clip(attention: Any) -> float | None:
    """What OLMo's queries and keys are clipped to."""
    return getattr(attention.config, "clip_qkv", None)


def _at(x: Tensor, slot: Tensor) -> Tensor:
    """[B, n, C], [B] -> [B, 1, C]"""
    return x.gather(1, slot[:, None, None].expand(-1, 1, x.shape[-1]))


def _is_plain(module: nn.Module, kind: type) -> bool:
    """Calling it is nothing but its forward, on weights that are ordinary tensors."""
    if type(module) is not kind or "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks:
        return False
    weight: Any = module._parameters.get("weight")
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point() and weight.numel() > 0
