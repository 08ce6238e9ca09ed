"""Key norms read off hidden states are those of the keys the layer computes, fused or through its modules."""

from typing import Any

import pytest
import torch
from checks import generate
from tiny_llava import batch, prompt
from torch import Tensor, nn

from vitcop import ViTCoP
from vitcop.engine import decoder_keys


class LowRank(nn.Module):
    """A LoRA adapter: the weight alone is not what the projection does."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (nn.Linear(a, b, bias=False) for a, b in ((base.in_features, 2), (2, base.out_features)))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def keys_of(layer: Any, hidden: Tensor) -> Tensor:
    """[B, H, n, d] before RoPE, by definition."""
    attention = layer.self_attn
    return attention.k_proj(layer.input_layernorm(hidden)).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


@pytest.mark.parametrize("heads", ["l2", "mean"])
def test_fused_equals_through_the_modules(llava: Any, heads: str) -> None:
    layer = llava(2).model.language_model.layers[3]
    hidden = torch.randn(2, 7, 64)
    calls: list[Any] = []
    with torch.no_grad():
        fused = decoder_keys.key_norms(layer, hidden, heads)
        hook = layer.self_attn.k_proj.register_forward_hook(lambda *_: calls.append(1))  # no longer plain: is called
        called = decoder_keys.key_norms(layer, hidden, heads)
        hook.remove()
        keys = keys_of(layer, hidden).double()
    exact = keys.pow(2).sum((1, 3)).sqrt() if heads == "l2" else keys.mean(1).norm(dim=-1)
    assert calls == [1]
    torch.testing.assert_close(fused.double(), exact, rtol=1e-5, atol=0)  # a float32 dot product of 64
    torch.testing.assert_close(called.double(), exact, rtol=1e-5, atol=0)


def test_lora_counts(llava: Any) -> None:
    layer = llava().model.language_model.layers[3]
    hidden, plain = torch.randn(1, 5, 64), layer.self_attn.k_proj
    with torch.no_grad():
        before = decoder_keys.key_norms(layer, hidden, "l2")
        layer.self_attn.k_proj = LowRank(plain)
        try:
            after = decoder_keys.key_norms(layer, hidden, "l2")
            exact = keys_of(layer, hidden).pow(2).sum((1, 3)).sqrt()
        finally:
            layer.self_attn.k_proj = plain
    torch.testing.assert_close(after, exact)
    assert not torch.allclose(after, before)


def test_the_same_choice_from_the_cache_before_and_after_rope(llava: Any) -> None:
    """Keys of the previous layer, read from the cache (rotated) or computed without one (not rotated)."""
    model = llava(2)
    method = ViTCoP(retention=0.3, key_source="previous", heads="l2")
    inputs = batch([prompt(1), prompt(2)])
    _, cached = generate(model, method, inputs, new=1)
    _, computed = generate(model, method, inputs, new=1, use_cache=False)
    for a, b in zip(cached.stages, computed.stages, strict=True):
        assert torch.equal(a.kept, b.kept)
