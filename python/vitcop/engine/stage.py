"""What methods see of a running model: one stage, and one group of samples at it."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import vitcop_kernels as ops
from vitcop.methods.base import Plan

from . import cache as caches
from . import decoder_keys, parallel
from .ahead import Ahead, VisionContext
from .compaction import Visible

if TYPE_CHECKING:
    from .run import Run


class StageView:
    """The decoder in front of one of its layers, and what several groups of samples ask for there, computed once."""

    def __init__(self, run: "Run", index: int, layer: nn.Module, hidden: Tensor) -> None:
        self.run, self.index, self.layer = run, index, layer
        self.hidden = hidden if hidden.device == run.device else hidden.to(run.device)  # [B, n, C] at the layer's input
        self._attention: dict[str, Tensor] = {}

    def key_norms(self, ctx: "StageContext", heads: str, source: str) -> Tensor:
        """[G, V] norms of the keys of the context's tokens."""
        if source == "layer":
            return decoder_keys.key_norms(self.layer, ctx.hidden, heads)
        keys = self._cached_keys()
        if keys is not None:
            keys = keys[:, :, self.run.history(self.index - 1) :]
            return ops.key_norms(ctx.gather(keys.transpose(1, 2)).transpose(1, 2), heads=heads)
        return decoder_keys.key_norms(self._layer_before(), ctx.gather(self._input_before()[0]), heads)

    def attention(self, source: str) -> Tensor:
        """[B, n] attention that each sample's last token pays."""
        if source not in self._attention:
            layer, hidden, rotary, keys = self._at(source)
            last = self.run.last_slots(hidden.shape[1])
            self._attention[source] = decoder_keys.last_token_attention(layer, hidden, last, rotary, *keys)
        return self._attention[source]

    def text_attention(self, raters: Tensor, source: str) -> Tensor:
        """[B, n] attention that raters `[B, W]` among the prompt's last W slots pay."""
        layer, hidden, rotary, keys = self._at(source)
        return decoder_keys.tail_attention(layer, hidden, self.run.raters_now(raters), rotary, *keys)

    def _at(
        self, source: str
    ) -> tuple[nn.Module, Tensor, tuple[Tensor, Tensor], tuple[int, Tensor | None, Tensor | None]]:
        """A layer, what goes into it, the rotation there, and the keys that are known: how many are of earlier turns,
        the keys, and which are valid."""
        run, width = self.run, self.hidden.shape[1]
        if source == "layer":
            assert run.sequence.rotary is not None
            return self.layer, self.hidden, run.sequence.rotary, run.keys_seen(self.index, width)
        keys = self._cached_keys()
        known = (
            run.keys_seen(self.index - 1, width)
            if keys is None
            else (run.history(self.index - 1), keys, run.keys_valid(self.index - 1, width))
        )
        return self._layer_before(), *self._input_before(), known

    def _cached_keys(self) -> Tensor | None:
        """[B, H, p + n, d] of the layer before; None where it has to project them again."""
        if self.index == 0:
            return None
        run, attention = self.run, self._layer_before().self_attn
        keys = caches.layer_keys(run.cache, self.index - 1)
        if keys is None or keys.device != run.device or parallel.group_of(attention) is not None:
            return None
        return keys

    def _layer_before(self) -> Any:
        if self.index == 0:
            raise ValueError("key_source: expected 'layer' for a stage at layer 0, got 'previous'")
        return self.run.adapter.decoder.layers[self.index - 1] if self.run.previous is None else self.run.previous[2]

    def _input_before(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        assert self.run.previous is not None
        hidden, rotary, _ = self.run.previous
        return hidden.detach().to(self.run.device), rotary


class StageContext:
    """Implements `methods.Context` for one group of samples at one stage."""

    def __init__(
        self, visible: Visible, budget: int, view: StageView, ahead: Ahead | Callable[[Any], Any] | None = None
    ) -> None:
        group = visible.group
        self.total, self.count, self.budget = group.total, visible.slots.shape[1], budget
        self.num_segments, self.max_segment, self.ordered = group.num_segments, group.max_segment, group.ordered
        self._visible, self._view, self._ahead = visible, view, ahead

    @functools.cached_property
    def saliency(self) -> Tensor:
        return self._of_tower("saliency")

    @functools.cached_property
    def features(self) -> Tensor:
        return self._of_tower("features")

    @functools.cached_property
    def positions(self) -> Tensor:
        return self._of_tower("positions")

    @functools.cached_property
    def segment(self) -> Tensor:
        return self._visible.group.segment.gather(1, self._visible.origin)

    @functools.cached_property
    def hidden(self) -> Tensor:
        return self.gather(self._view.hidden)

    def key_norms(self, heads: str = "l2", source: str = "layer") -> Tensor:
        return self._view.key_norms(self, heads, source)

    def attention(self, source: str = "layer") -> Tensor:
        return self.gather(self._view.attention(source))

    @functools.cached_property
    def ahead(self) -> Any:
        if isinstance(self._ahead, Ahead):
            return self._ahead.result(self.total)
        return None if self._ahead is None else self._ahead(VisionContext(self))

    @functools.cached_property
    def embeddings(self) -> Tensor:
        return self._rows(self._run.embeds)[self._each, self._visible.group.slots]

    @functools.cached_property
    def text_embeddings(self) -> Tensor:
        return self._rows(self._run.embeds[:, -self._run.tail :])

    @functools.cached_property
    def text_valid(self) -> Tensor:
        run, end = self._run, self._visible.group.end
        after = torch.arange(run.queries - run.tail, run.queries, device=end.device) > end
        return after if run.prompt_valid is None else after & self._rows(run.prompt_valid[:, -run.tail :])

    def text_attention(self, raters: Tensor, source: str = "layer") -> Tensor:
        rows, samples = self._visible.group.rows, self._visible.group.samples
        if rows is None:
            return self.gather(self._view.text_attention(raters, source))
        nobody = raters.new_zeros((self._view.hidden.shape[0], raters.shape[1]))  # samples that are not here
        turns = [samples[:number].count(sample) for number, sample in enumerate(samples)]
        if not any(turns):
            return self.gather(self._view.text_attention(nobody.index_copy(0, rows, raters), source))
        # Several images of a sample, each with raters of its own: one image of every sample at a time.
        turn, received = torch.tensor(turns, device=rows.device)[:, None], raters.new_zeros(())
        for number in range(max(turns) + 1):
            some = nobody.int().index_add(0, rows, (raters & (turn == number)).int()) > 0
            received = torch.where(turn == number, self.gather(self._view.text_attention(some, source)), received)
        return received

    @functools.cached_property
    def tower_states(self) -> Tensor:
        return self._of_tower("states")

    @functools.cached_property
    def cls_states(self) -> Tensor | None:
        states, group = self._run.vision.get_optional("cls_states"), self._visible.group
        if states is None:
            return None
        images, rest = divmod(group.total, group.max_segment)
        if rest or images != group.num_segments or group.max_segment * len(states) != self._run.vision.count:
            raise NotImplementedError(
                f"images: expected all of a sample to have as many visual tokens, to know their [CLS] tokens, got "
                f"{group.total} in up to {group.num_segments} images of up to {group.max_segment}"
            )
        first = group.flat[:, :: group.max_segment] // group.max_segment  # [G, num_segments]
        return states[first]

    @property
    def feature_heads(self) -> int:
        return self._run.vision.num_heads

    def project(self, states: Tensor) -> Tensor:
        return self._run.vision.project(states)

    def of(self, visible: Visible, budget: int) -> "StageContext":
        """The same stage for other samples."""
        return StageContext(visible, budget, self._view)

    @property
    def _each(self) -> Tensor:
        """[G, 1] the samples of the group, within the group."""
        slots = self._visible.slots
        return torch.arange(slots.shape[0], device=slots.device)[:, None]

    def _rows(self, x: Tensor) -> Tensor:
        """[B, ...] -> [G, ...]"""
        rows = self._visible.group.rows
        return x if rows is None else x[rows]

    @property
    def _run(self) -> "Run":
        return self._view.run

    def _of_tower(self, name: str) -> Tensor:
        """[T, ...] of the vision tower -> [G, V, ...]"""
        group, origin = self._visible.group, self._visible.origin
        of_all = self._run.vision.get(name)
        if group.whole:
            return (of_all if origin is group.order else of_all.index_select(0, origin[0]))[None]
        return of_all[group.flat if origin is group.order else group.flat.gather(1, origin)]

    def gather(self, x: Tensor) -> Tensor:
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
