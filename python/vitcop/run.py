"""One forward of the decoder under pruning: what is where, layer by layer."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import caches, decoder_keys, parallel
from .adapters.base import Adapter, VisualTokens
from .ahead import Ahead, VisionContext, lane_for
from .caches import CacheState
from .compaction import Compaction, compact, put, restarted, wanted_order
from .context import PromptText, Sources, StageContext, Visible, Vision, content
from .injection import Injection
from .layout import Group, Prompt, put_back
from .masks import causal_mask, mask_kind, read_history, read_padding
from .memory import Footprint, PeakWatch, footprint
from .methods.base import Plan, Program, Stage
from .per_image import PerImage, Plans
from .recording import stage_report
from .report import StageReport, Stopwatch, Untimed


class Run:
    """State of one decoder forward of `queries` tokens per sample, after what `cache` holds.

    `groups` are the samples with visual tokens (none: nothing to prune, but a pruned cache to go on with).
    """

    def __init__(
        self, adapter: Adapter, program: Program, embeds: Tensor, cache: Any, padding_mask: Tensor | None,
        position_ids: Tensor | None, prompt: Prompt | None, groups: Sequence[Group], tokens: Sequence[VisualTokens],
        per_image: PerImage | None = None,
    ) -> None:  # fmt: skip
        self.adapter, self.program = adapter, program
        self.prompt, self.groups, self.tokens, self.per_image = prompt, list(groups), tokens, per_image
        self.batch, self.queries = embeds.shape[:2]
        self.embeds = embeds.detach()
        self.device = embeds.device
        self.kind = mask_kind(adapter.decoder.config._attn_implementation)
        self.before = caches.state_of(cache)
        self.cache, self.seen = cache, caches.seen(cache)
        self.history = [caches.layer_length(cache, i) for i in range(adapter.shape.num_layers)]  # before this forward
        self.valid, self.lengths = read_padding(padding_mask, prompt, self.batch, self.queries, self.device)
        self.prompt_valid = self.valid
        new = self.before is None and bool(groups)
        self.history_mask = read_history(padding_mask, self.seen, self.queries, self.device) if new else None
        self.shift = caches.align_batch(self.before.shift, self.batch) if self.before else None  # [B, 1]
        if position_ids is None:
            position_ids = torch.arange(self.seen, self.seen + self.queries, device=self.device)[None]
        self.position_ids = position_ids if self.shift is None else position_ids - self.shift
        self.tail = prompt.tail if prompt is not None and groups else 0  # slots that may hold text after the images
        self.last_visual = prompt.last_visual if prompt is not None and groups else None
        place = [torch.arange(group.total, device=self.device).expand_as(group.slots) for group in groups]
        self.visible = [Visible(group, group.slots, origin) for group, origin in zip(groups, place, strict=True)]
        self.source: Tensor | None = None  # [B, n] slot of the prompt that each slot came from; None: itself
        self.injection: Injection | None = None
        self.embeddings: tuple[Tensor, Tensor] | None = None  # cos, sin of the current slots
        self.dirty = self.before is not None  # layers no longer get what the decoder prepared for them
        self.key_masks: list[Tensor | None] = []
        self.slots: list[int] = []  # n at each layer
        self.stages: list[StageReport] = []  # so far
        self.homes: list[tuple[Tensor | None, Tensor | None]] = []  # source and valid at each layer
        self._mask: tuple[Any, Tensor | None, Tensor | None] | None = None
        self._previous: tuple[Tensor, tuple[Tensor, Tensor], Any] | None = None  # the layer before a stage, its input
        self.lane = lane_for(self.device)
        self._ahead: Ahead | None = None  # of the stage to come
        self.behind: Tensor | None = None  # [1] slots of padding behind every sample, in a graph
        self._timed = True
        self.first: list[Tensor] | None = None  # a list: gets the input of the first layer
        self.peak_watch: PeakWatch | None = None  # None: nothing is allocated, as in the replay of a graph

    def static(self, behind: Tensor) -> None:
        """For a graph: whatever differs from replay to replay is in tensors, and nothing can be timed.

        Prompts are padded on the right by `behind` slots, which are treated as text that nobody sees.
        """
        self.behind, self._timed = behind, False
        self.dirty = True  # the masks that the decoder prepares may depend on values
        self.tail = self.queries - min(group.total for group in self.groups)  # wherever the images are
        real = torch.arange(self.queries, device=self.device) < self.queries - behind
        self.prompt_valid = real.expand(self.batch, -1)

    def _stopwatch(self) -> Stopwatch | Untimed:
        return Stopwatch(self.device) if self._timed else Untimed()

    # -- one layer ---------------------------------------------------------------------------------------------------

    def layer_input(
        self, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]] | None:
        """What decoder layer `index` gets instead of `hidden` and `kwargs`; None: leave them."""
        self.cache = caches.given(kwargs) if self.cache is None else self.cache
        if self.embeddings is None:
            self.embeddings = self.adapter.read_rotary(kwargs["position_embeddings"])
        if self.injection is not None and index:
            hidden = self.injection.add(index - 1, hidden)
        if index == 0:
            self._start_ahead(0)
        for number, stage in enumerate(self.program.stages):
            if stage.layer == index and self.visible:
                hidden = self._prune(number, stage, layer, hidden)
        followed = self.visible and any(stage.layer == index + 1 for stage in self.program.stages)
        kept = decoder_keys.kept(self.adapter.decoder.layers[index]) if followed else None
        self._previous = (hidden, self.embeddings, kept) if followed else None
        if index == 0 and self.first is not None:
            self.first.append(hidden)
        self.slots.append(hidden.shape[1])
        self.homes.append((self.source, self.valid))
        key_mask, mask = self._masks(index, hidden)
        self.key_masks.append(key_mask)
        if not self.dirty:
            return None if self.injection is None else (hidden, kwargs)
        # Flash attention takes position ids with gaps for packed sequences; cos and sin carry the positions.
        rotary = self.adapter.write_rotary(self.embeddings)
        changed = {"attention_mask": mask, "position_embeddings": rotary, "position_ids": None}
        if kwargs.get("cache_position") is not None:
            begin = self.history[index]
            changed["cache_position"] = torch.arange(begin, begin + hidden.shape[1], device=self.device)
        return hidden, {**kwargs, **changed}

    def _masks(self, index: int, hidden: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Key mask [B, keys] and attention mask of a layer; the same objects as long as nothing has changed."""
        before = self._mask_before(index)
        length, queries = self.history[index], hidden.shape[1]
        key = (id(before), id(self.valid), length, queries, self.dirty)
        if self._mask is None or self._mask[0] != key:
            keys = caches.grown_mask(before, length, self.valid, self.batch, queries, self.device)
            mask = None
            if self.dirty:
                mask = causal_mask(self.kind, keys, self.batch, queries, length + queries, hidden.dtype, self.device)
            self._mask = key, keys, mask
        return self._mask[1:]

    def _mask_before(self, index: int) -> Tensor | None:
        """[B, >= columns] key mask of what a layer held before this forward."""
        return self.history_mask if self.before is None else self.before.masks[index]

    # -- one stage ---------------------------------------------------------------------------------------------------

    def _prune(self, number: int, stage: Stage, layer: nn.Module, hidden: Tensor) -> Tensor:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.join()
        watch = self._stopwatch()
        watch.start()
        with torch.no_grad():
            sources = self._sources(stage.layer, layer, hidden.detach().to(self.device))
            shown, chosen = self._shown(), dict[int, Plan]()
            for visible in shown:
                total, count = visible.group.total, visible.slots.shape[1]
                budget = self.program.counts(total)[number]
                if budget < count:
                    chosen[total] = self._agreed(stage.select(StageContext(visible, budget, sources, ahead)))
            plans = self._plans(shown, chosen)
            compaction = self._compact(plans, hidden.shape[1]) if plans else None
            origins = [
                v.origin.gather(1, plans[v.group.images].anchors) if v.group.images in plans else v.origin
                for v in self.visible
            ]
        watch.stop()
        beside = None if ahead is None else ahead.watch
        found = stage_report(stage, self.visible, plans, origins, self.batch, watch, beside, self.stages)
        self.stages.append(found)
        if compaction is not None:
            sources.hidden, before = hidden, self.visible.copy()  # from here on gradients flow
            if self.injection is not None:
                self.injection.compact(compaction, plans.values(), stage.layer, hidden)
            last = number + 1 == len(self.program.stages)
            hidden = self._apply(compaction, plans, origins, hidden, first=stage.layer == 0, last=last)
            hidden = self._reorder(compaction, plans, before, hidden, stage.layer)
            for old, new in zip(before, self.visible, strict=True):
                plan = plans.get(old.group.images)
                if plan is not None and plan.selection() is not plan:
                    made = content(plan, StageContext(old, new.slots.shape[1], sources))
                    hidden = put(
                        hidden, new, made if self._ranks is None else parallel.first_ranks_tensor(made, self._ranks)
                    )
        self._start_ahead(number + 1)
        return hidden

    def _shown(self) -> list[Visible]:
        """What methods take for samples."""
        return self.visible if self.per_image is None else self.per_image.visible(self.visible)

    def _plans(self, shown: Sequence[Visible], chosen: dict[int, Plan]) -> Plans:
        """Plans for samples, from those for what was shown."""
        return {(m,): p for m, p in chosen.items()} if self.per_image is None else self.per_image.join(shown, chosen)

    def _agreed(self, plan: Plan) -> Plan:
        """The same plan on every rank of a tensor-parallel group."""
        return plan if self._ranks is None else parallel.first_ranks(plan, self._ranks)

    @functools.cached_property
    def _ranks(self) -> Any:
        """The tensor-parallel group; None: this process has every head."""
        return parallel.group_of(self.adapter.decoder.layers[0].self_attn)

    def _reorder(
        self, compaction: Compaction, plans: Plans, before: Sequence[Visible], hidden: Tensor, layer: int
    ) -> Tensor:
        """Bring outputs to the places that their plans want, and everything that belongs to them."""
        order = wanted_order(compaction, plans, before, self.visible)
        if order is None:
            return hidden
        place = order.argsort(dim=1)
        for number, visible in enumerate(self.visible):
            rows = visible.group.rows
            slots = (place if rows is None else place[rows]).gather(1, visible.slots)
            self.visible[number] = Visible(visible.group, slots, visible.origin)
        each = torch.arange(self.batch, device=order.device)[:, None]
        assert self.source is not None and self.embeddings is not None
        self.source = self.source[each, order]
        if not self._counts_places(layer):
            self.position_ids = self.position_ids[each, order]
            self.embeddings = self.embeddings[0][each, order], self.embeddings[1][each, order]
        return hidden[each, order]

    def _counts_places(self, layer: int) -> bool:
        """Whether a stage at this layer leaves contiguous ids, which belong to places and not to tokens."""
        return self.program.positions == "renumber" or (layer == 0 and self.program.positions != "original")

    def _start_ahead(self, number: int) -> None:
        """Stage `number` is the next: start what it can do before the decoder comes to it."""
        stage = self.program.stages[number] if number < len(self.program.stages) else None
        if stage is None or stage.ahead is None:
            return
        work = stage.ahead
        sources = self._sources(stage.layer, self.adapter.decoder.layers[stage.layer], torch.empty(0, device="cpu"))
        contexts = {}
        for visible in self._shown():
            total = visible.group.total
            budget = self.program.counts(total)[number]
            if budget < visible.slots.shape[1]:
                contexts[total] = VisionContext(StageContext(visible, budget, sources))
        if contexts:
            watch = self._stopwatch() if self.lane is not None else None
            self._ahead = Ahead(lambda: {total: work(ctx) for total, ctx in contexts.items()}, self.lane, watch)

    def abandon(self) -> None:
        """Join what still runs on the side, for a forward that ends here; calling it again does nothing."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.join()

    def _sources(self, index: int, layer: nn.Module, hidden: Tensor) -> Sources:
        def key_norms(visual: Tensor, gather: Any, heads: str, source: str) -> Tensor:
            if source == "layer":
                return decoder_keys.key_norms(layer, visual, heads)
            return decoder_keys.key_norms(self._layer_before(index), gather(self._input_before(index)[0]), heads)

        @functools.cache
        def attention(source: str) -> Tensor:
            assert self.embeddings is not None
            if source == "layer":
                return self._attention(index, layer, hidden, self.embeddings)
            return self._attention(index - 1, self._layer_before(index), *self._input_before(index))

        def text_attention(raters: Tensor, source: str) -> Tensor:
            assert self.embeddings is not None
            if source == "layer":
                return self._text_attention(raters, index, layer, hidden, self.embeddings)
            return self._text_attention(raters, index - 1, self._layer_before(index), *self._input_before(index))

        @functools.cache
        def cached_keys() -> Tensor | None:
            if index == 0:
                return None
            keys, attention = caches.layer_keys(self.cache, index - 1), self._layer_before(index).self_attn
            if keys is None or keys.device != self.device or parallel.group_of(attention) is not None:
                return None
            return keys[:, :, self.history[index - 1] :]

        text = PromptText(self.embeds, self.prompt_valid, self.tail)
        vision = Vision(self.adapter, self.tokens, self.device)
        return Sources(vision, hidden, key_norms, attention, cached_keys, text, text_attention)

    def _attention(self, index: int, layer: nn.Module, hidden: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """[B, n] attention that each sample's last token pays in a layer, earlier turns taking their share."""
        last = None
        if self.behind is not None:
            last = (hidden.shape[1] - 1 - self.behind).expand(self.batch)
        elif self.valid is not None:
            place = torch.arange(self.valid.shape[1], device=self.device)
            last = torch.where(self.valid, place, -1).amax(1)
        past = self._keys_seen(index, hidden.shape[1])
        return decoder_keys.last_token_attention(layer, hidden, last, embeddings, *past)

    def _text_attention(
        self, raters: Tensor, index: int, layer: nn.Module, hidden: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """[B, n] attention that raters `[B, W]` among the prompt's last W slots pay in a layer."""
        if self.source is not None:  # padding is in front now, so that they still are among the last
            place = self.source[:, -raters.shape[1] :] - (self.queries - raters.shape[1])
            raters = raters.gather(1, place.clamp(min=0)) & (place >= 0)
        if self.valid is not None:
            raters = raters & self.valid[:, -raters.shape[1] :]
        past = self._keys_seen(index, hidden.shape[1])
        return decoder_keys.tail_attention(layer, hidden, raters, embeddings, *past)

    def _keys_seen(self, index: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """Keys of earlier turns in a layer, and the key mask [B, p + n]."""
        length, past = self.history[index], None
        if length:
            past = caches.layer_keys(self.cache, index)
            if past is None:
                raise NotImplementedError(
                    "past_key_values: expected a DynamicCache on one device, to rank by attention"
                )
            past = past[:, :, :length]
        mask = self._mask_before(index)
        return past, caches.grown_mask(mask, length, self.valid, self.batch, width, self.device)

    def _layer_before(self, index: int) -> nn.Module:
        if index == 0:
            raise ValueError("key_source: expected 'layer' for a stage at layer 0, got 'previous'")
        return self.adapter.decoder.layers[index - 1] if self._previous is None else self._previous[2]

    def _input_before(self, index: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        assert self._previous is not None
        hidden, embeddings, _ = self._previous
        return hidden.detach().to(self.device), embeddings

    def _compact(self, plans: Plans, width: int) -> Compaction:
        dropped = [0] * self.batch
        parts = []
        for visible in self.visible:
            plan = plans.get(visible.group.images)
            if plan is not None:
                parts.append((visible.group.rows, visible.slots, plan.selection()))
                for sample in visible.group.samples:
                    dropped[sample] = visible.slots.shape[1] - plan.anchors.shape[1]
        return compact(parts, self.lengths, dropped, self.valid, width)

    def _apply(
        self, compaction: Compaction, plans: Plans, origins: list[Tensor], hidden: Tensor, first: bool, last: bool
    ) -> Tensor:
        """Bring everything that belongs to a slot to the shortened sequence, `hidden` too."""
        positions = self.program.positions
        # Contiguous: an id counts the tokens before it that are still there.
        renumber = positions == "renumber" or (first and positions != "original")
        restart = last and positions == "released" and not renumber
        ids = restarted(self.position_ids, self.valid) if restart else self.position_ids
        assert self.embeddings is not None
        rotation = [] if renumber or restart else list(self.embeddings)
        source = [] if self.source is None else [self.source]
        hidden, moved = compaction.all(hidden, [ids, *source, *rotation])
        self.position_ids = moved[0]
        self.source = moved[1] if source else compaction.index
        if renumber:
            self.position_ids = self.position_ids - compaction.removed[:, :-1]
            total = compaction.removed[:, -1:]
            self.shift = total if self.shift is None else self.shift + total
        if rotation:
            self.embeddings = moved[-2], moved[-1]
        else:
            self.embeddings = self.adapter.positions_for(hidden, self.position_ids)
        self.valid, self.lengths = compaction.valid, compaction.lengths
        new_slots = iter(compaction.slots)
        for number, (visible, origin) in enumerate(zip(self.visible, origins, strict=True)):
            group = visible.group
            if group.images in plans:
                slots = next(new_slots)
                if plans[group.images].places is not None:  # in the order of the outputs
                    column = compaction.column if group.rows is None else compaction.column[group.rows]
                    slots = column.gather(1, visible.slots.gather(1, plans[group.images].anchors))
            else:
                column = compaction.column if group.rows is None else compaction.column[group.rows]
                slots = column.gather(1, visible.slots)
            self.visible[number] = Visible(group, slots, origin)
        self.dirty = True
        return hidden

    # -- afterwards --------------------------------------------------------------------------------------------------

    def finish(self, last_hidden_state: Tensor, attached: caches.Attached) -> Tensor:
        """Leave the state on the cache; give back `last_hidden_state` at the length that was put in, 0 where pruned."""
        if self.cache is not None:
            pruned = self.before.pruned if self.before else 0
            if self.last_visual is not None:
                pruned = self.seen + self.last_visual + 1
            dropped = (self.before.dropped if self.before else 0) + self.queries - self.slots[0]
            caches.attach_state(self.cache, CacheState(dropped, self.key_masks, self.shift, attached, pruned))
        return put_back(last_hidden_state, self.source, self.valid, self.queries)

    def hidden_states(self, states: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """What the decoder collected, its input and each layer's output, at the length that was put in."""
        if self.first:  # some decoders collect it before the hook of the layer
            states = [*self.first, *states[1:]]
        homes = [self.homes[0], *self.homes]
        paired = zip(states, homes, strict=True)
        return tuple(h if h is None else put_back(h, *home, self.queries) for h, home in paired)

    def footprints(self, itemsize: int) -> tuple[Footprint, Footprint]:
        """Of this forward as it is, and as it would be without pruning."""
        full = [[n] * len(self.slots) for n in (self.seen, self.queries)]
        compute = functools.partial(footprint, self.adapter.shape, self.batch, itemsize)
        return compute(self.history, self.slots), compute(*full)
