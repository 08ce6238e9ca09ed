"""What the tests of calls need to know of a model family. A new one is an entry of `FAMILIES`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import slow_llava
import slow_qwen  # noqa: F401  (the slow truth of two families)
import tiny_anyres
import tiny_internvl
import tiny_llava
import tiny_qwen
import torch
import transformers
from torch import Tensor

from vitcop import ViTCoP


@dataclass(frozen=True)
class Family:
    """A tiny model of each kind (shared by all tests: attaching must leave no trace), prompts, and the slow truth."""

    name: str
    build: Callable[..., Any]  # build(key_heads=, attention=, dtype=, layers=, seed=): a model with random weights
    prompt: Callable[..., Any]  # prompt(images, seed=0, text=5): (token ids, images of the prompt); videos=0 if it can
    batch: Callable[..., dict[str, Any]]  # batch(prompts, side="left", dtype=float32): as a processor returns them
    logits: Callable[..., Tensor]  # logits(model, method, turns, answer, kept=None, states=None), see slow_llava
    image_id: int  # placeholder
    image_tokens: int  # visual tokens of `prompt(1)`
    video_id: int | None = None  # placeholder; None: the family takes no videos
    tower: str = "vision_tower"
    counts_tokens: bool = True  # position ids do; else they are (time, row, column), made by the model itself

    def method(self, **options: Any) -> ViTCoP:
        """With options that the family takes."""
        if not self.counts_tokens and options.get("semantics") == "released":
            options = {"positions": "original", **options}
        return ViTCoP(**options)

    def positions(self, mask: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """Position ids of the last columns of padded prompts, for a call of `forward`."""
        ids = (mask.cumsum(1) - 1).clamp(min=0)
        return {"position_ids": ids if last is None else ids[:, -last:]} if self.counts_tokens else {}

    def __str__(self) -> str:
        return self.name

    def model(self, key_heads: int = 4, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        return shared(self, key_heads, attention, dtype)

    def placeholders(self) -> list[int]:
        return [self.image_id] if self.video_id is None else [self.image_id, self.video_id]

    def count(self, ids: list[int]) -> int:
        """Visual tokens of a prompt."""
        return sum(token in self.placeholders() for token in ids)

    def prompts(self) -> list[Any]:
        """Prompts for one batch: with 1, 0 and 2 images, with videos alone, and last with all that the family takes."""
        found = [self.prompt(1), self.prompt(0), self.prompt(2)]
        if self.video_id is None:
            return [*found, self.prompt(1, seed=2, text=9)]
        return [*found, self.prompt(0, videos=2), self.prompt(1, seed=2, text=9, videos=1)]


def anyres(name: str, kind: tiny_anyres.AnyRes) -> Family:
    tokens = kind.prompt(1)[0].count(tiny_llava.IMAGE)
    video_id = tiny_anyres.VIDEO if kind.video_tokens else None
    return Family(name, kind.build, kind.prompt, kind.batch, slow_llava.logits, tiny_llava.IMAGE, tokens, video_id)


def qwen(name: str, kind: str) -> Family:
    model: Any = getattr(transformers, f"{kind}ForConditionalGeneration")

    def batch(prompts: Any, side: str = "left", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        return tiny_qwen.batch(model, [tiny_qwen.Sample(ids, shown or []) for ids, shown in prompts], side, dtype)

    prompt = functools.partial(tiny_qwen.pictures, name)
    return Family(
        name,
        functools.partial(tiny_qwen.tiny_qwen, name),
        prompt,
        batch,
        slow_llava.logits,
        tiny_qwen.IMAGE,
        prompt(1)[0].count(tiny_qwen.IMAGE),
        tiny_qwen.VIDEO,
        tower="visual",
        counts_tokens=False,
    )


FAMILIES = {
    "llava": Family(
        "llava",
        tiny_llava.tiny_llava,
        tiny_llava.prompt,
        tiny_llava.batch,
        slow_llava.logits,
        tiny_llava.IMAGE,
        tiny_llava.PATCHES,
    ),
    "llava_next": anyres("llava_next", tiny_anyres.NEXT),
    "llava_next_video": anyres("llava_next_video", tiny_anyres.NEXT_VIDEO),
    "llava_onevision": anyres("llava_onevision", tiny_anyres.ONEVISION),
    "qwen2_5_vl": qwen("qwen2_5_vl", "Qwen2_5_VL"),
    "qwen3_vl": qwen("qwen3_vl", "Qwen3VL"),
    "internvl": Family(
        "internvl",
        tiny_internvl.tiny_internvl,
        tiny_internvl.prompt,
        tiny_llava.batch,
        slow_llava.logits,
        tiny_llava.IMAGE,
        tiny_internvl.GRID**2,
    ),
}
"""Each model family once."""

VARIANTS = {
    "llava_next, mistral": anyres("llava_next", tiny_anyres.NEXT_MISTRAL),
}
"""The same with other parts."""


@functools.cache
def shared(family: Family, key_heads: int, attention: str, dtype: torch.dtype) -> Any:
    return family.build(key_heads=key_heads, attention=attention, dtype=dtype)


def parameters(*names: str) -> list[Any]:
    """Families as parameters of a fixture, each with its mark; without names each one of `FAMILIES`."""
    chosen = {n: (FAMILIES | VARIANTS)[n] for n in names or FAMILIES}
    return [pytest.param(family, id=n, marks=pytest.mark.family(family.name)) for n, family in chosen.items()]
