"""Which decoders are understood: by how their layers are built, and by what one of each kind does with an input."""

import contextlib
import inspect
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitcop.engine import decoder_keys, parallel

if TYPE_CHECKING:
    from .base import Adapter

# Modules with weights that are accounted for. Norms of a layer besides these come behind its attention.
DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "feed_forward", "block_sparse_moe", "moe", "shared_mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "dense", "q_norm", "k_norm"}
OF_SHARDS = ("_flat_param",)  # parameters that FSDP puts into a module
TOKENS = 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Relative to the norm of the true values, against rounding alone: wrong keys are off by their size."""


_LOOKING = threading.Lock()


class _Enough(Exception):
    """Ends a forward that has shown what it was run for."""


def refuse(decoder: Any, what: str) -> NotImplementedError:
    return NotImplementedError(
        f"model: expected a decoder whose attention vitcop understands, got {type(decoder).__name__}: {what}"
    )


def check_structure(decoder: Any, language_model: Any) -> None:
    """Raise NotImplementedError for a decoder whose layers are not Llama's, up to what `decoder_keys` knows."""
    if decoder is None or not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise refuse(language_model, "it has no list of layers")
    config = decoder.config
    types = set(getattr(config, "layer_types", None) or ()) | {"full_attention"}
    sliding = "sliding_attention" in types
    if sliding or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)):
        raise NotImplementedError(
            f"model: expected full attention in every decoder layer, got a sliding window of {config.sliding_window}"
        )
    if types != {"full_attention"}:
        raise refuse(decoder, f"layers of the types {', '.join(sorted(types))}")
    for name in ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size"):
        if not isinstance(getattr(config, name, None), int):
            raise refuse(decoder, f"its configuration has no {name}")
    if "rotary_emb" not in decoder._modules:
        raise refuse(decoder, "it has no rotary embedding")
    _known(decoder, decoder, DECODER)
    for layer in map(decoder_keys.unwrapped, decoder.layers):
        if "self_attn" not in layer._modules:
            raise refuse(decoder, f"{type(layer).__name__} has no self_attn")
        _known(decoder, layer, LAYER | {name for name in layer._modules if "norm" in name})
        behind = {"post_attention_layernorm", "post_feedforward_layernorm"} <= layer._modules.keys()
        if "input_layernorm" not in layer._modules and not behind:
            raise refuse(decoder, f"{type(layer).__name__} has no norm in front of its attention, nor two behind")
        if "position_embeddings" not in inspect.signature(type(layer).forward).parameters:
            raise refuse(decoder, f"{type(layer).__name__} does not take position_embeddings")
        attention = decoder_keys.unwrapped(layer.self_attn)
        _known(decoder, attention, ATTENTION)
        if "qkv_proj" not in attention._modules and not {"q_proj", "k_proj", "v_proj"} <= attention._modules.keys():
            raise refuse(decoder, f"{type(attention).__name__} has neither q_proj, k_proj and v_proj nor qkv_proj")
        if not all(hasattr(attention, name) for name in ("head_dim", "scaling", "config")):
            raise refuse(decoder, f"{type(attention).__name__} does not say its head_dim and scaling")
        capped = [name for name in (*vars(attention), *vars(config)) if "softcap" in name and "final" not in name]
        if any(getattr(attention, name, None) or getattr(config, name, None) for name in capped):
            raise refuse(decoder, f"{type(attention).__name__} caps its scores ({capped[0]})")


def check_sharding(decoder: Any) -> None:
    """Raise NotImplementedError where a stage would have to gather weights while other ranks may have no such stage:
    whole layers have to be gathered, as they are called."""
    for layer in decoder.layers:
        inner = decoder_keys.unwrapped(layer)
        attention = inner._modules.get("self_attn")
        if attention is None:
            continue
        if any(map(decoder_keys.is_fsdp, attention.modules())):
            raise refuse(decoder, f"FSDP shards {type(inner).__name__}.self_attn by itself; shard whole layers")
        if any(map(decoder_keys.is_fsdp, (layer, inner))) or decoder_keys.is_gathered(layer):
            continue
        if any(weight.numel() == 0 or hasattr(weight, "ds_id") for weight in attention.parameters()):
            if parallel.several_processes():
                raise refuse(
                    decoder,
                    f"the weights of {type(inner).__name__} are gathered module by module, which takes all ranks at "
                    "once; gather whole layers (DeepSpeed: set_z3_leaf_modules)",
                )
            norms = (decoder_keys.unwrapped(attention)._modules.get(name) for name in ("q_norm", "k_norm"))
            if any(norm is not None and not decoder_keys.shape_of(norm) for norm in norms):
                raise refuse(decoder, "its norms of queries and keys have no weights outside their forward")
    if parallel.several_processes() and "self_attn" in decoder_keys.unwrapped(decoder.layers[0])._modules:
        parallel.group_of(decoder_keys.unwrapped(decoder_keys.unwrapped(decoder.layers[0]).self_attn))


def _known(decoder: Any, module: nn.Module, names: set[str]) -> None:
    """Refuse weights that are not accounted for."""
    own = {name for name in module._parameters if not name.startswith(OF_SHARDS)}
    other = {
        name for name, child in module._modules.items() if child is not None and any(True for _ in child.parameters())
    }
    unknown = sorted(own | (other - names))
    if unknown:
        raise refuse(decoder, f"{type(module).__name__} has a {unknown[0]}")


def check_values(adapter: "Adapter") -> float:
    """Compare keys and attention of a layer of each kind with what the layer itself computes.

    Sharded, quantised, offloaded or hooked layers are left alone: they may want other processes, or be seen by others.

    Returns:
        What the decoder multiplies its input by, before the first layer.

    Raises NotImplementedError where they differ.
    """
    decoder = adapter.decoder
    said = float(getattr(decoder, "embedding_multiplier", None) or 1)
    if "gemma" in decoder.config.model_type and "Scaled" not in type(decoder.embed_tokens).__name__:
        said = decoder.config.hidden_size**0.5
    chosen = {_kind(layer): index for index, layer in reversed(list(enumerate(decoder.layers)))}
    modules = {module for index in chosen.values() for module in decoder.layers[index].modules()}
    modules |= {decoder, *decoder.rotary_emb.modules()}
    with _LOOKING:
        if not all(map(_is_ordinary, modules)):
            return said
        return _looked_at(adapter, chosen.values(), modules, said)


def _looked_at(adapter: "Adapter", chosen: Iterable[int], modules: set[nn.Module], said: float) -> float:
    decoder = adapter.decoder
    with torch.no_grad(), _evaluating(modules), torch.compiler.set_stance("force_eager"):
        try:
            given = _given(decoder)
        except Exception:  # an attention that does not run here, as flash attention on a CPU: structure has to do
            return said
        scale = _scale(decoder, *given[:2])
        for index in chosen:
            _compare(adapter, index, *given[1:])
    return scale


def _kind(layer: Any) -> Any:
    """What makes layers alike: how they are built, and numbers that they may behave by."""

    def numbers(module: Any) -> Any:
        found = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}
        return tuple(sorted((name, value) for name, value in found.items() if name not in ("layer_idx", "layer_index")))

    inner = decoder_keys.unwrapped(layer)
    attention = decoder_keys.unwrapped(inner.self_attn)
    built = tuple((name, type(module).__name__, numbers(module)) for name, module in attention.named_modules())
    shapes = tuple((name, tuple(weight.shape)) for name, weight in attention.named_parameters())
    return type(inner), tuple(inner._modules), numbers(inner), built, shapes


def _is_ordinary(module: nn.Module) -> bool:
    """Whether it can be called without anybody's notice."""
    hooks = module._forward_hooks or module._forward_pre_hooks or "_hf_hook" in vars(module)
    weights = [weight for weight in module._parameters.values() if weight is not None]
    plain = all(
        type(weight) in (nn.Parameter, Tensor)
        and weight.is_floating_point()
        and not weight.is_meta
        and weight.numel() > 0
        and not hasattr(weight, "ds_id")
        for weight in weights
    )
    return plain and not hooks and not any(name.startswith(OF_SHARDS) for name in module._parameters)


@contextlib.contextmanager
def _evaluating(modules: set[nn.Module]) -> Iterator[None]:
    """Without dropout, which would draw random numbers, and checkpointing."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _given(decoder: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """A small random input, and what the first layer gets of it."""
    weight = next(decoder.layers[0].parameters())
    generator = torch.Generator(device="cpu").manual_seed(0)
    size = (1, TOKENS, decoder.config.hidden_size)
    embeds = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(weight)
    seen: list[Any] = []
    thread = threading.get_ident()

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:  # others may run the model
            seen.extend((args, kwargs))
            raise _Enough

    hook = decoder.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        decoder(inputs_embeds=embeds, use_cache=True)
    except _Enough:
        pass
    finally:
        hook.remove()
    args, kwargs = seen
    kwargs = dict(kwargs)
    return embeds, args[0] if args else kwargs.pop("hidden_states"), kwargs


def _scale(decoder: Any, embeds: Tensor, hidden: Tensor) -> float:
    ratio = float(hidden.double().norm() / embeds.double().norm())
    if not _close(hidden, embeds * ratio):
        raise refuse(decoder, "its layers get another input than its embeddings")
    return 1.0 if abs(ratio - 1) < 1e-6 else ratio


def _compare(adapter: "Adapter", index: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
    decoder = adapter.decoder
    layer, (attention, _) = decoder.layers[index], decoder_keys.parts(decoder.layers[index])
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:  # others may run the model
            seen.append(output[0])
            raise _Enough

    hook = attention.register_forward_hook(stop)
    try:
        with contextlib.suppress(_Enough):
            layer(hidden, **kwargs)
    finally:
        hook.remove()
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    if cache is None or not seen or cache.get_seq_length(index) != TOKENS:
        raise refuse(decoder, f"layer {index} does not keep its keys in the cache that it is given")
    true = cache.layers[index]
    if not (true.keys.isfinite().all() and seen[0].isfinite().all()):
        return  # weights that say nothing
    embeddings = adapter.read_rotary(kwargs["position_embeddings"])
    ids = torch.arange(TOKENS, device=hidden.device)[None]
    own = adapter.read_rotary(adapter.positions_for(hidden, ids)) if adapter.counts_tokens else embeddings
    if not all(_close(a, b) for a, b in zip(own, embeddings, strict=True)):
        raise refuse(decoder, "its layers get other rotary embeddings than rotary_emb makes")
    query, keys = decoder_keys.query_and_keys(layer, hidden, lambda x: x[:, -1:], embeddings)
    if not _close(keys, true.keys):
        raise refuse(decoder, f"the keys of layer {index} are not what its projections and norms make")
    factor = float(embeddings[0][0, 0].double().mean())  # the cosine of position 0
    if embeddings[0].shape[-1] < attention.head_dim and abs(factor - 1) > 1e-6 and getattr(attention, "use_rope", True):
        for each in decoder.layers:
            decoder_keys.SCALED[decoder_keys.parts(each)[0]] = embeddings[0].shape[-1], factor
    if hidden.device.type == "cpu":  # elsewhere kernels would be compiled for it
        norms, wanted = decoder_keys.key_norms(layer, hidden, "l2"), true.keys.double().square().sum((1, 3)).sqrt()
        if not _close(norms.double() * (wanted.norm() / norms.double().norm()), wanted, keys.dtype):
            raise refuse(decoder, f"the key norms of layer {index} are not those of its keys")
    groups = query.shape[1] // keys.shape[1]
    shared, values = (x.repeat_interleave(groups, dim=1) for x in (keys, true.values))
    weights = (query.float() @ shared.float().mT * attention.scaling).softmax(-1)
    made = (weights @ values.float()).transpose(1, 2).flatten(2).to(hidden.dtype)
    project = attention._modules.get("o_proj", attention._modules.get("dense"))
    if project is None or not _close(project(made), seen[0][:, -1:]):
        raise refuse(decoder, f"the attention of layer {index} is not the softmax of its queries and keys")


def _close(found: Tensor, true: Tensor, dtype: torch.dtype | None = None) -> bool:
    if found.shape != true.shape:
        return False
    tolerance = TOLERANCE.get(dtype or true.dtype, 1e-3)
    return bool((found.double() - true.double()).norm() <= tolerance * true.double().norm())
