"""What the tests of calls need to know of a model family. A new one is an entry of `FAMILIES`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import slow_llava
import tiny_llava
import torch
from torch import Tensor


@dataclass(frozen=True)
class Family:
    """A tiny model of each kind (shared by all tests: attaching must leave no trace), prompts, and the slow truth."""

    name: str
    build: Callable[..., Any]  # build(key_heads=, attention=, dtype=, layers=, seed=): a model with random weights
    prompt: Callable[..., Any]  # prompt(images, seed=0, text=5): (token ids, images of the prompt)
    batch: Callable[..., dict[str, Any]]  # batch(prompts, side="left", dtype=float32): as a processor returns them
    logits: Callable[..., Tensor]  # logits(model, method, turns, answer, kept=None, states=None), see slow_llava
    image_id: int  # placeholder
    image_tokens: int  # visual tokens of one image of `prompt`

    def __str__(self) -> str:
        return self.name

    def model(self, key_heads: int = 4, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        return shared(self.name, key_heads, attention, dtype)


FAMILIES = {
    "llava": Family(
        "llava", tiny_llava.tiny_llava, tiny_llava.prompt, tiny_llava.batch, slow_llava.logits,
        tiny_llava.IMAGE, tiny_llava.PATCHES,
    ),
}  # fmt: skip


@functools.cache
def shared(name: str, key_heads: int, attention: str, dtype: torch.dtype) -> Any:
    return FAMILIES[name].build(key_heads=key_heads, attention=attention, dtype=dtype)


def parameters(*names: str) -> list[Any]:
    """Families as parameters of a fixture, each with its mark; all without names."""
    return [pytest.param(FAMILIES[n], id=n, marks=pytest.mark.family(n)) for n in names or FAMILIES]
