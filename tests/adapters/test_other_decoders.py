"""LLaVA around other decoders: tokens are ranked by the keys that the decoder itself keeps, or attaching is refused."""

import functools
from typing import Any

import pytest
import tiny_llava
import torch
import transformers
from checks import OLD
from tiny_llava import IMAGE, batch, prompt

import vitcop
from vitcop import FastV, Uniform, ViTCoP
from vitcop.engine import decoder_keys

SHARED = dict(
    vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128, rope_theta=10000.0)
LONG = dict(
    rope_type="longrope", factor=4.0, original_max_position_embeddings=128, rope_theta=10000.0,
    short_factor=[1.0] * 4, long_factor=[2.0] * 4, partial_rotary_factor=0.5,
)  # fmt: skip
RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama with biases": ("Llama", dict(attention_bias=True)),
    "Llama with wide heads": ("Llama", dict(head_dim=24)),
    "Llama with YaRN": ("Llama", dict(rope_scaling=YARN)),
    "Mistral": ("Mistral", dict(sliding_window=None)),
    "Mixtral": ("Mixtral", dict(num_local_experts=2)),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", dict(head_dim=16)),
    "Phi3": ("Phi3", dict(sliding_window=None)),
    "Phi3, rotating a part": ("Phi3", dict(sliding_window=None, partial_rotary_factor=0.5)),
    "Olmo": ("Olmo", {}),
    "Olmo, clipping": ("Olmo", dict(clip_qkv=0.5)),
    "Olmo2": ("Olmo2", {}),
    "Olmoe, clipping": ("Olmoe", dict(clip_qkv=0.5, num_experts=2, num_experts_per_tok=1)),
    "Granite": (
        "Granite",
        dict(embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.7, logits_scaling=2.0),
    ),
    "Cohere, with norms of heads": ("Cohere", dict(use_qk_norm=True)),
    "Gemma": ("Gemma", dict(head_dim=16)),
    "SmolLM3, rotating in some layers": ("SmolLM3", dict(no_rope_layers=[1, 1, 0, 0, 1, 0])),
    "Helium": ("Helium", dict(head_dim=16)),
    "Glm, rotating a part": ("Glm", dict(head_dim=16)),
    "Glm4": ("Glm4", dict(head_dim=16)),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma2, which caps scores": ("Gemma2", dict(head_dim=16)),
    "GPTNeoX": ("GPTNeoX", {}),
    "OPT": ("OPT", dict(ffn_dim=96, word_embed_proj_dim=64)),
    "Bloom": ("Bloom", {}),
    "Falcon": ("Falcon", {}),
    "GPT2": ("GPT2", dict(n_embd=64, n_layer=6, n_head=4)),
    "Mamba": ("Mamba", {}),
    "Persimmon": ("Persimmon", {}),
    "StableLm, with norms of heads": ("StableLm", dict(qk_layernorm=True)),
    "Llama4": ("Llama4Text", dict(head_dim=16, intermediate_size_mlp=96, num_local_experts=2)),
    "DeepseekV3": ("DeepseekV3", dict(n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1)),
    "Qwen3-Next": ("Qwen3Next", dict(num_experts=2, num_experts_per_tok=1)),
    "GPT-OSS": ("GptOss", dict(num_local_experts=2, num_experts_per_tok=1)),
}


def llava(text: str, options: dict[str, Any], key_heads: int = 2) -> Any:
    kind = getattr(transformers, f"{text}Config", None)
    if kind is None:
        pytest.skip(f"this transformers has no {text}")
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration._from_config(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=16,
                patch_size=4, projection_dim=16,
            ),
            text_config=kind(**SHARED | {"num_key_value_heads": key_heads} | options),
            image_token_id=IMAGE, tie_word_embeddings=False,
        ),
        attn_implementation="eager",
    )  # fmt: skip
    model = model.float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms that differ from channel to channel, and from queries to keys.
            weight.normal_(float("norm" in name), 0.3 if weight.dim() == 1 else 1.5 / weight.shape[-1] ** 0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@functools.cache
def shared(name: str) -> Any:
    return llava(*RIGHT[name])


@pytest.fixture(params=RIGHT)
def model(request: pytest.FixtureRequest) -> Any:
    if OLD and request.param.startswith("Olmoe"):
        pytest.skip("refused: its attention is not yet like Llama's")
    return shared(request.param)


INPUTS = batch([prompt(1, text=7)])
VISUAL = INPUTS["input_ids"][0] == IMAGE


def test_key_norms_rank_as_the_keys_in_the_cache(model: Any) -> None:
    for layer in (2, 3):
        method = ViTCoP(
            stage1_ratio=1.0, stage2_ratio=0.5, stage3_ratio=0.25, shallow_layer=layer, deep_layer=4,
            saliency="key_norm_only",
        )  # fmt: skip
        with torch.no_grad():
            keys = model(**INPUTS, use_cache=True).past_key_values.layers[layer].keys[0, :, VISUAL]
            want = keys.double().square().sum((0, 2)).argsort()[:8].sort().values
            with vitcop.prune(model, method) as report:
                model(**INPUTS, use_cache=False)
        assert report.stages[1].kept[0].tolist() == want.tolist()


def test_attention_ranks_as_that_of_the_layer(model: Any) -> None:
    with torch.no_grad():
        attention = model(**INPUTS, output_attentions=True).attentions[1][0, :, -1, VISUAL]
        want = attention.sum(0).topk(6).indices.sort().values
        with vitcop.prune(model, FastV(kept=6)) as report:
            model(**INPUTS)
    assert report.stages[0].kept[0].tolist() == want.tolist()


def test_keeping_all_changes_nothing(model: Any) -> None:
    options: Any = dict(max_new_tokens=4, do_sample=False)
    want = model.generate(**INPUTS, **options)
    with vitcop.prune(model, ViTCoP(retention=1.0)):
        assert torch.equal(model.generate(**INPUTS, **options), want)


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize("text", ["Granite", "Gemma"])
def test_projected_tokens_enter_the_first_layer_as_embeddings_do(text: str, looked_at: bool) -> None:
    model = llava(*RIGHT[text])
    seen: list[Any] = []
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**INPUTS)
        states = model.model.vision_tower(INPUTS["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        if looked_at:  # a hooked layer is left alone
            hook.remove()
        handle = vitcop.attach(model, Uniform(retention=1.0))
        projected = handle.adapter.project(states)
    handle.remove()
    hook.remove()
    torch.testing.assert_close(projected[0], seen[0][0, VISUAL])


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name(name: str) -> None:
    text, options = REFUSED[name]
    try:
        model = llava(text, options)
    except Exception as error:
        pytest.skip(f"transformers itself cannot: {error}")
    decoder = type(model.model.language_model).__name__.removesuffix("Model")
    with pytest.raises(NotImplementedError, match=f"(?i){decoder}|sliding window"):
        vitcop.attach(model, ViTCoP(retention=0.5))


def test_a_layer_that_does_something_else_is_refused_by_its_values() -> None:
    model = tiny_llava.tiny_llava(layers=4)
    attention = model.model.language_model.layers[2].self_attn
    original, attention.alike = attention.forward, False  # another kind of layer, to look at

    def doubled(*args: Any, **kwargs: Any) -> Any:
        kwargs["hidden_states"] = kwargs["hidden_states"].roll(1, -1)
        return original(*args, **kwargs)

    attention.forward = doubled
    with pytest.raises(NotImplementedError, match="LlamaModel: the keys of layer 2 are not what its projections"):
        vitcop.attach(model, ViTCoP(retention=0.5))


@pytest.mark.parametrize("training", [False, True])
def test_looking_leaves_nothing(training: bool) -> None:
    model = tiny_llava.tiny_llava(layers=4).train(training)
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with vitcop.prune(model, ViTCoP(retention=0.5)):
        pass
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_factor_on_a_part_of_each_key_counts() -> None:
    """As in Phi-4-mini: cached keys are scaled where they are rotated."""
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if OLD else LONG
    model = llava("Phi3", dict(sliding_window=None, rope_scaling=rope, partial_rotary_factor=0.5,
                               original_max_position_embeddings=128))  # fmt: skip
    test_key_norms_rank_as_the_keys_in_the_cache(model)
    assert len(decoder_keys.SCALED) >= 6
