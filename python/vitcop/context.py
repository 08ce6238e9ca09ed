"""What a stage sees of a running model."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import vitcop_kernels as ops

from .ahead import Ahead
from .layout import Group
from .methods.base import Plan

if TYPE_CHECKING:
    from .adapters.base import Adapter, VisualTokens


@dataclass
class Visible:
    """The visual tokens that G samples still have, on their way through the decoder."""

    group: Group
    slots: Tensor  # [G, V] where they are in the current sequence
    origin: Tensor  # [G, V] which of the sample's unpruned visual tokens they are


@dataclass
class Sources:
    """Tensors of one stage that methods ask for, each computed once."""

    vision: "Vision"
    hidden: Tensor  # [B, n, C]
    key_norms: Callable[[Tensor, Callable[[Tensor], Tensor], str, str], Tensor]
    attention: Callable[[str], Tensor]  # [B, n]
    cached_keys: Callable[[], Tensor | None]  # [B, H, n, d] of the layer before
    prompt: "PromptText"
    text_attention: Callable[[Tensor, str], Tensor]  # [B, W] bool -> [B, n]


class Vision:
    """What runs of the vision tower left, joined when asked for. T: visual tokens of all images."""

    def __init__(self, adapter: "Adapter", tokens: "Sequence[VisualTokens]", device: torch.device) -> None:
        self._adapter, self._tokens, self._device = adapter, tokens, device
        self._known: dict[tuple[str, bool], Tensor | None] = {}  # by name, and whether gradients flow

    def get(self, name: str) -> Tensor:
        """saliency [T], features [T, D], positions [T, 2], or states [T, D]."""
        tensor = self.get_optional(name)
        assert tensor is not None
        return tensor

    def get_optional(self, name: str) -> Tensor | None:
        """The same and cls_states [images, D], which may be None."""
        key = name, torch.is_grad_enabled()
        if key not in self._known:
            parts = [self._offered(tokens, name)() for tokens in self._tokens]
            missing = any(part is None for part in parts)
            self._known[key] = None if missing else torch.cat(parts).to(self._device)
        return self._known[key]

    @property
    def count(self) -> int:
        """T"""
        return sum(sum(tokens.image_tokens) for tokens in self._tokens)

    @property
    def num_heads(self) -> int:
        return int(self._offered(self._tokens[0], "num_heads"))

    def project(self, states: Tensor) -> Tensor:
        return self._adapter.project(states)

    def _offered(self, tokens: "VisualTokens", name: str) -> Any:
        if not hasattr(tokens, name):
            raise NotImplementedError(
                f"method: expected one that needs no hidden states of the vision tower, which "
                f"{type(self._adapter).__name__} does not offer"
            )
        return getattr(tokens, name)


@dataclass
class PromptText:
    """The prompts before any pruning: q slots, of which the last W hold all text after the last visual token."""

    embeddings: Tensor  # [B, q, C]
    valid: Tensor | None  # [B, q] bool, None: no padding
    tail: int  # W


class StageContext:
    """Implements `methods.Context` for one group of samples at one stage."""

    def __init__(self, visible: Visible, budget: int, sources: Sources, ahead: Ahead | None = None) -> None:
        group = visible.group
        self.total, self.count, self.budget = group.total, visible.slots.shape[1], budget
        self.num_segments, self.max_segment, self.ordered = group.num_segments, group.max_segment, group.ordered
        self._visible, self._sources, self._ahead = visible, sources, ahead

    @functools.cached_property
    def saliency(self) -> Tensor:
        return self._sources.vision.get("saliency")[self._flat]

    @functools.cached_property
    def features(self) -> Tensor:
        return self._sources.vision.get("features")[self._flat]

    @functools.cached_property
    def positions(self) -> Tensor:
        return self._sources.vision.get("positions")[self._flat]

    @functools.cached_property
    def segment(self) -> Tensor:
        return self._visible.group.segment.gather(1, self._visible.origin)

    @functools.cached_property
    def hidden(self) -> Tensor:
        return self._gather(self._sources.hidden)

    def key_norms(self, heads: str = "l2", source: str = "layer") -> Tensor:
        if source == "previous":
            keys = self._sources.cached_keys()
            if keys is not None:
                return ops.key_norms(self._gather(keys.transpose(1, 2)).transpose(1, 2), heads=heads)
        return self._sources.key_norms(self.hidden, self._gather, heads, source)

    def attention(self, source: str = "layer") -> Tensor:
        return self._gather(self._sources.attention(source))

    @property
    def ahead(self) -> Any:
        return None if self._ahead is None else self._ahead.result(self.total)

    @functools.cached_property
    def embeddings(self) -> Tensor:
        return self._rows(self._sources.prompt.embeddings)[self._each, self._visible.group.slots]

    @functools.cached_property
    def text_embeddings(self) -> Tensor:
        prompt = self._sources.prompt
        return self._rows(prompt.embeddings[:, -prompt.tail :])

    @functools.cached_property
    def text_valid(self) -> Tensor:
        prompt, end = self._sources.prompt, self._visible.group.end
        queries = prompt.embeddings.shape[1]
        after = torch.arange(queries - prompt.tail, queries, device=end.device) > end
        return after if prompt.valid is None else after & self._rows(prompt.valid[:, -prompt.tail :])

    def text_attention(self, raters: Tensor, source: str = "layer") -> Tensor:
        rows, samples = self._visible.group.rows, self._visible.group.samples
        if rows is None:
            return self._gather(self._sources.text_attention(raters, source))
        nobody = raters.new_zeros((self._sources.hidden.shape[0], raters.shape[1]))  # samples that are not here
        turns = [samples[:number].count(sample) for number, sample in enumerate(samples)]
        if not any(turns):
            return self._gather(self._sources.text_attention(nobody.index_copy(0, rows, raters), source))
        # Several images of a sample, each with raters of its own: one image of every sample at a time.
        turn, received = torch.tensor(turns, device=rows.device)[:, None], raters.new_zeros(())
        for number in range(max(turns) + 1):
            some = nobody.int().index_add(0, rows, (raters & (turn == number)).int()) > 0
            received = torch.where(turn == number, self._gather(self._sources.text_attention(some, source)), received)
        return received

    @functools.cached_property
    def tower_states(self) -> Tensor:
        return self._sources.vision.get("states")[self._flat]

    @functools.cached_property
    def cls_states(self) -> Tensor | None:
        states, group = self._sources.vision.get_optional("cls_states"), self._visible.group
        if states is None:
            return None
        images, rest = divmod(group.total, group.max_segment)
        if rest or images != group.num_segments or group.max_segment * len(states) != self._sources.vision.count:
            raise NotImplementedError(
                f"images: expected all of a sample to have as many visual tokens, to know their [CLS] tokens, got "
                f"{group.total} in up to {group.num_segments} images of up to {group.max_segment}"
            )
        first = group.flat[:, :: group.max_segment] // group.max_segment  # [G, num_segments]
        return states[first]

    @property
    def feature_heads(self) -> int:
        return self._sources.vision.num_heads

    def project(self, states: Tensor) -> Tensor:
        return self._sources.vision.project(states)

    def of(self, visible: Visible, budget: int) -> "StageContext":
        """The same stage for other samples."""
        return StageContext(visible, budget, self._sources)

    @property
    def _each(self) -> Tensor:
        """[G, 1] the samples of the group, within the group."""
        slots = self._visible.slots
        return torch.arange(slots.shape[0], device=slots.device)[:, None]

    def _rows(self, x: Tensor) -> Tensor:
        """[B, ...] -> [G, ...]"""
        rows = self._visible.group.rows
        return x if rows is None else x[rows]

    @functools.cached_property
    def _flat(self) -> Tensor:
        """[G, V] rows of the vision features."""
        return self._visible.group.flat.gather(1, self._visible.origin)

    def _gather(self, x: Tensor) -> Tensor:
        """[B, n, ...] -> [G, V, ...]: what belongs to the visual tokens of the group."""
        rows, slots = self._visible.group.rows, self._visible.slots
        if slots.shape[0] == x.shape[0] == 1:
            return x.index_select(1, slots[0])
        if rows is None:
            rows = torch.arange(slots.shape[0], device=slots.device)
        return x[rows[:, None], slots]


def content(plan: Plan, ctx: StageContext) -> Tensor:
    """[G, S, C] what a plan puts into its slots."""
    if plan.hidden is not None:
        return plan.hidden(ctx)
    assert plan.perm is not None and plan.offsets is not None
    return ops.segment_mean(
        ctx.hidden, plan.perm, plan.offsets, anchors=plan.anchors, merged=plan.merged, merge=plan.merge
    )
