"""What the tests of replayed prefills share: prompts, methods, and comparisons with eager prefills."""

from typing import Any

import torch
from tiny_llava import IMAGE, prompt
from torch import Tensor

import vitcop
from vitcop.methods import Method

# Logits have a standard deviation of about 2.5. Right padding changes the shapes of matrix products, and with them the
# order of float32 sums: seen are differences of 1e-5.
TOLERANCE = 1e-4


def eager(model: Any, method: Method, inputs: dict[str, Any], **options: Any) -> tuple[Any, Any, vitcop.Report]:
    with vitcop.prune(model, method) as report, torch.no_grad():
        output = model(**inputs, use_cache=True, **options)
    return output, output.past_key_values, report


def assert_same_report(got: vitcop.Report, expected: vitcop.Report) -> None:
    for name in ("visual_tokens", "text_tokens", "kv_bytes", "kv_bytes_unpruned", "flops", "mean_tokens"):
        assert getattr(got, name) == getattr(expected, name), name
    for a, b in zip(got.stages, expected.stages, strict=True):
        assert (a.name, a.layer, a.tokens_in, a.tokens_out, a.rows) == (
            b.name,
            b.layer,
            b.tokens_in,
            b.tokens_out,
            b.rows,
        )
        for name in ("kept", "merged", "labels"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None) and (x is None or torch.equal(x, y)), (a.name, name)
        for sample in range(len(a.tokens_in)):
            assert a.segments(sample) == b.segments(sample)


def assert_same_cache(got: Any, expected: Any) -> None:
    assert got.get_seq_length() == expected.get_seq_length()
    for a, b in zip(got.layers, expected.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(a.values, b.values, atol=TOLERANCE, rtol=0)


def moved(ids: list[int], pixels: Tensor, front: int) -> tuple[list[int], Tensor]:
    """The same images, with `front` words of the question before them instead of behind."""
    first, last = ids.index(IMAGE), len(ids) - ids[::-1].index(IMAGE)
    return ids[:first] + ids[-front:] + ids[first:last] + ids[last:-front], pixels


def prompts(images: int) -> list[list[Any]]:
    """Batches of one or two prompts of one bucket: other words, other images, other lengths, another place."""
    one = [[prompt(images, seed=s, text=5 + 3 * s)] for s in range(3)]
    two = [[prompt(images, seed=s), prompt(images, seed=s + 10)] for s in range(2)]
    return [*one, [moved(*prompt(images, seed=5, text=9), front=4)], *two, [prompt(images, seed=6, text=9)]]


METHODS = {
    "paper": {},
    "released": {"semantics": "released"},
    "attention": {"saliency": "attention"},
    "attention of the layer before": {"saliency": "attention", "key_source": "previous"},
    "without clusters": {"saliency": "key_norm_only"},
    "features of the decoder": {"features": "hidden"},
    "original positions": {"positions": "original"},
    "filled floors": {"quota": "floor", "merge": "anchor_plus_mean"},
    "without Stage I": {"stage1_ratio": 1.0},
}
