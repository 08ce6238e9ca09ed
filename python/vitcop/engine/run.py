"""One forward of the decoder under pruning: what each layer gets."""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitcop.methods.base import Choice, Plan, Program, Stage

from . import cache as caches
from . import decoder_keys, parallel
from .ahead import Ahead, VisionContext, lane_for
from .cache import Attached
from .compaction import put_back
from .hooks import Current, Stands, disable
from .injection import Injection
from .layout import Layout, Prompt
from .masks import causal_mask, mask_kind, read_history, read_padding
from .memory import Columns, PeakWatch
from .per_image import PerImage
from .report import StageReport, Stopwatch, Untimed
from .sequence import Plans, Visible
from .sequence import Sequence as Slots
from .stage import StageContext, StageView, content
from .vision import Vision, VisualTokens

if TYPE_CHECKING:
    from vitcop.adapters.base import Adapter

_AS_IT_IS = contextlib.nullcontext()


@dataclass(slots=True)
class Segment:
    """Consecutive layers that get the same slots."""

    layer: int  # the first of them
    width: int
    source: Tensor | None  # [B, n] slot of the prompt that each slot came from; None: itself
    valid: Tensor | None  # [B, n] bool; None: no padding
    keys: Tensor | None = None  # [B, columns] bool key mask after this forward; None: no padding


class Run:
    """State of one decoder forward of `queries` tokens per sample, after what `cache` holds.

    Args:
        embeds: [B, q, C]. padding_mask: [B, >= q] or None. position_ids: those that count tokens, [B or 1, q], or None.
        prompt, layout: of a prefill with visual tokens. None: nothing to prune, but a pruned cache to go on with.
        current: says which run a thread's layers are for; hooks of the others leave them alone.
    """

    behind: Tensor | None = None  # [1] slots of padding behind every sample, in a graph
    first: list[Tensor] | None = None  # a list: gets the input of the first layer
    injection: Injection | None = None
    peak_watch: PeakWatch | None = None  # None: nothing is allocated, as in the replay of a graph
    per_image: PerImage | None = None
    previous: tuple[Tensor, tuple[Tensor, Tensor], Any] | None = None  # the layer before a stage, its input
    history_mask: Tensor | None = None  # [B, seen] padding of earlier turns that were not pruned
    _ahead: Ahead | None = None  # of the stage to come
    _timed = True
    _changed: dict[str, Any] | None = None  # arguments of the layers that differ from the decoder's own
    _shared: list[Tensor] | None = None  # cos and sin, as all layers get them
    _history: list[int] | None = None  # columns of each layer's cache before this forward, where they differ

    def __init__(
        self, adapter: "Adapter", program: Program, embeds: Tensor, cache: Any, padding_mask: Tensor | None,
        position_ids: Tensor | None, prompt: Prompt | None, layout: Layout | None, tokens: Sequence[VisualTokens],
        attached: Attached, current: Current,
    ) -> None:  # fmt: skip
        self.adapter, self.program, self.attached, self._current = adapter, program, attached, current
        self.prompt, self.layout, self.tokens = prompt, layout, tokens
        self.batch, self.queries = embeds.shape[:2]
        self.embeds, self.device = embeds.detach() if embeds.requires_grad else embeds, embeds.device
        self.kind = mask_kind(adapter.decoder.config._attn_implementation)
        self.cache, self.before, self.seen = cache, caches.is_pruned(cache), caches.seen(cache)
        if self.before:
            self._history = [caches.layer_length(cache, i) for i in range(adapter.shape.num_layers)]
        elif self.seen:
            self.history_mask = read_history(padding_mask, self.seen, self.queries, self.device)
        valid = read_padding(padding_mask, prompt, self.batch, self.queries, self.device)
        self.prompt_valid, self.position_ids = valid, position_ids
        self.groups = [] if layout is None else layout.groups
        self._stages_at = {} if layout is None else layout.shapes.at
        self.sequence = Slots(
            self.batch, self.queries, self.groups, prompt, valid, program.positions, adapter.positions_for,
            later=self.seen > 0,
        )  # fmt: skip
        if layout is not None and layout.images is not None:
            self.per_image = PerImage(layout.groups, layout.images)
        self.vision = Vision(adapter, tokens, self.device)
        self.segments = [Segment(0, self.queries, None, valid)]
        self.stages: list[StageReport] = []  # so far
        self.lane = lane_for(self.device)
        self._masks: dict[Any, tuple[Tensor | None, Tensor | None]] = {}
        self._keys: dict[int, Tensor | None] = {}  # key masks of layers whose caches differ
        self._stands = Stands(self, current)
        self._watched: set[int] = set()  # layers whose calls this run sees

    @property
    def prunes(self) -> bool:
        """Whether a stage of this forward drops tokens."""
        return self.layout is not None and self.layout.shapes.first is not None

    @property
    def unseen(self) -> bool:
        """Whether a stage that should have dropped tokens never ran."""
        return self.layout is not None and len(self.segments) <= sum(s.prunes for s in self.layout.shapes.stages)

    @functools.cached_property
    def tail(self) -> int:
        """W: slots that may hold text after the images."""
        return 0 if self.prompt is None else self.prompt.tail

    def static(self, behind: Tensor) -> None:
        """For a graph: whatever differs from replay to replay is in tensors, and nothing can be timed.

        Prompts are padded on the right by `behind` slots, which are treated as text that nobody sees.
        """
        self.behind, self._timed = behind, False
        vars(self)["tail"] = self.queries - min(group.total for group in self.groups)  # wherever the images are
        real = torch.arange(self.queries, device=self.device) < self.queries - behind
        self.prompt_valid = real.expand(self.batch, -1)

    def positions(self) -> Tensor | None:
        """[B or 1, q] position ids for the decoder; None: those that it was going to take."""
        ids = self.position_ids
        shift = caches.shift_of(self.cache)
        if shift is None and not (self.program.positions == "renumber" and self.prunes and not self.seen):
            return None
        if ids is None:
            ids = torch.arange(self.seen, self.seen + self.queries, device=self.device)[None]
        # In a first turn as many later as each sample loses tokens: its last id stays what it was.
        self.position_ids = ids + self._removed() if shift is None else ids - shift
        return self.position_ids

    def _removed(self) -> Tensor:
        """[B, 1] slots that each sample loses in all."""
        assert self.layout is not None
        return self._column(self.layout.shapes.stages[-1].removed)

    def _column(self, numbers: list[int]) -> Tensor:
        """`[B, 1]`, or `[1, 1]` where all are alike; without a copy from the host then."""
        if min(numbers) == max(numbers):
            return torch.full((1, 1), numbers[0], device=self.device)
        return torch.tensor(numbers, device=self.device)[:, None]

    def _later_shift(self) -> Tensor | None:
        """[B, 1] by how much position ids of later tokens are behind the prompt's."""
        shift = caches.shift_of(self.cache) if self.before else None
        positions = self.program.positions
        if not self.seen or self.layout is None or positions == "original":
            return shift
        stages = zip(self.program.stages, self.layout.shapes.stages, strict=True)
        removed = [shapes.removed for stage, shapes in stages if stage.layer == 0 or positions == "renumber"]
        if not removed:
            return shift
        mine = self._column(removed[-1])
        return mine if shift is None else shift + mine

    def watch_layers(self) -> None:
        """See the calls of the layers that get something else than the decoder has prepared for all, until `end()`.

        Layers differ in cos, sin and the mask. They share one list of the former and one tensor of the latter, whose
        contents change at each stage, so that only stages are watched. (Autograd keeps masks, flash attention takes
        the caller's: layers have arguments of their own then.)
        """
        self._start_ahead(0)
        if self.layout is None or self.before or self.behind is not None or self.injection or self.first is not None:
            self._watch_from(0)
            return
        shapes = self.layout.shapes
        if shapes.first is None:
            return
        layers = self.adapter.decoder.layers
        if self.kind != "flash" and not torch.is_grad_enabled():
            self._stands.put(self.adapter.decoder.rotary_emb, self._share)
        for index in shapes.hooked:
            self._watched.add(index)
            self._stands.put(decoder_keys.in_fsdp(layers[index]), functools.partial(self._layer, index))

    def _watch_from(self, begin: int) -> None:
        """Every layer from this one on."""
        layers = self.adapter.decoder.layers
        for index in range(begin, len(layers)):
            if index not in self._watched:
                self._watched.add(index)
                self._stands.put(decoder_keys.in_fsdp(layers[index]), functools.partial(self._layer, index))

    def _share(self, module: nn.Module, forward: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Layers unpack cos and sin from this list."""
        output = forward(*args, **kwargs)
        if self._shared is not None:  # asked for by ourselves
            return output
        self._shared = list(output)
        return self._shared

    def cancel(self) -> None:
        """From another thread: let the forward in progress raise in the next layer that it comes to."""
        for layer in self.adapter.decoder.layers:
            self._stands.put(decoder_keys.in_fsdp(layer), self._refuse)

    def _refuse(self, module: nn.Module, forward: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.end()
        raise RuntimeError("The pruning of this model was removed while a forward was in progress.")

    def end(self) -> None:
        """Let go of the layers, and join what still runs on the side; calling it again does nothing."""
        self._stands.remove()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.join()

    def history(self, index: int) -> int:
        """Columns that a layer's cache held before this forward."""
        return self.seen if self._history is None else self._history[index]

    # -- one layer ---------------------------------------------------------------------------------------------------

    def _layer(self, index: int, module: nn.Module, forward: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run decoder layer `index` on what it should get."""
        numbers = self._stages_at.get(index, ())
        if numbers or index + 1 in self._stages_at or self.injection is not None or self.first == []:
            hidden = args[0] if args else kwargs["hidden_states"]
            changed = self._look(index, numbers, module, hidden, kwargs)
            if changed is not hidden:
                if args:
                    args = changed, *args[1:]
                else:
                    kwargs["hidden_states"] = changed
        if self._history is not None:
            self._changed = self._arguments(index, kwargs)
        if self._changed is not None:
            kwargs.update(self._changed)
        return forward(*args, **kwargs)

    @disable
    def _look(
        self, index: int, numbers: Sequence[int], layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """What layer `index` gets for `hidden`."""
        if self.sequence.rotary is None:
            self._begin(kwargs)
        if self.injection is not None and index:
            hidden = self.injection.add(index - 1, hidden)
        if index == 0 and self.behind is not None:  # the masks that the decoder prepares may depend on values
            self._change(0, kwargs)
        for number in numbers:
            hidden = self._prune(number, self.program.stages[number], layer, hidden, kwargs)
        if index + 1 in self._stages_at:
            assert self.sequence.rotary is not None
            self.previous = hidden, self.sequence.rotary, decoder_keys.kept(self.adapter.decoder.layers[index])
        else:
            self.previous = None
        if self.first == []:
            self.first.append(hidden)
        return hidden

    def _begin(self, kwargs: dict[str, Any]) -> None:
        """The first layer that this run sees."""
        self.cache = caches.given(kwargs) if self.cache is None else self.cache
        ids = None
        if self.program.positions == "released" or (self.prompt is not None and not self.prompt.contiguous):
            ids = self.position_ids
            if ids is None:
                ids = torch.arange(self.seen, self.seen + self.queries, device=self.device)[None]
        cos, sin = self.adapter.read_rotary(kwargs["position_embeddings"])  # maybe the list, which changes
        self.sequence.begin((cos, sin), ids)

    def _change(self, index: int, kwargs: dict[str, Any]) -> None:
        """Let layers from `index` on get what fits the slots of now."""
        assert self.sequence.rotary is not None
        if self._shared is not None and self._changed is None and self._share_mask(index, kwargs.get("attention_mask")):
            self._shared[:] = self.adapter.write_rotary(self.sequence.rotary)
            return
        self._changed = self._arguments(index, kwargs)
        self._watch_from(index + 1)

    def _share_mask(self, index: int, shared: Tensor | None) -> bool:
        """Make the mask that all layers share that of the slots of now; False where it cannot be."""
        if shared is None:
            return self.sequence.valid is None and not self.seen
        keys, mask = self._mask(index, always=True)
        assert mask is not None
        if mask.dtype == shared.dtype:
            self.segments[-1].keys = keys
            shared.set_(mask)  # type: ignore[call-overload]
        return mask.dtype == shared.dtype

    def _mask(self, index: int, always: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """The key mask of layer `index`, and the mask that its attention takes, for the slots of now."""
        width, length, valid = self.sequence.width, self.history(index), self.sequence.valid
        before = caches.padding_of(self.cache.layers[index]) if self._history is not None else self.history_mask
        key = id(before), id(valid), length, width
        if key not in self._masks:
            keys = caches.grown_mask(before, length, valid, self.batch, width, self.device)
            dtype = self.embeds.dtype
            mask = causal_mask(self.kind, keys, self.batch, width, length + width, dtype, self.device, always)
            self._masks[key] = keys, mask
        return self._masks[key]

    def _arguments(self, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments that fit the slots of now and the cache of layer `index`."""
        width, length = self.sequence.width, self.history(index)
        keys, mask = self._mask(index)
        self.segments[-1].keys = keys
        if self._history is not None:
            self._keys[index] = keys
        # Flash attention takes position ids with gaps for packed sequences; cos and sin carry the positions.
        changed: dict[str, Any] = {"attention_mask": mask, "position_ids": None}
        if self.sequence.rotary is not None:
            changed["position_embeddings"] = self.adapter.write_rotary(self.sequence.rotary)
        if kwargs.get("cache_position") is not None:
            changed["cache_position"] = torch.arange(length, length + width, device=self.device)
        return changed

    # -- one stage ---------------------------------------------------------------------------------------------------

    def _prune(self, number: int, stage: Stage, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        assert self.layout is not None
        shapes, slots = self.layout.shapes.stages[number], self.sequence
        if not shapes.prunes:
            self._start_ahead(number + 1)
            return hidden
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.join()
        watch = Stopwatch(self.device) if self._timed else Untimed()
        watch.start()
        view = StageView(self, stage.layer, layer, hidden.detach() if hidden.requires_grad else hidden)
        before, last = slots.visible, number + 1 == len(self.program.stages)
        graph = torch.is_grad_enabled()
        with torch.no_grad() if graph else _AS_IT_IS:
            shown, choices = self._shown(), dict[int, Plan | Choice]()
            for visible in shown:
                budget = shapes.budgets.get(visible.group.total)
                if budget is not None:
                    context = StageContext(visible, budget, view, ahead or stage.ahead)
                    choices[visible.group.total] = stage.select(context)
            choice = next(iter(choices.values()))
            at_once = not graph and self._chooses_at_once and slots.chooses(hidden)
            if isinstance(choice, Choice) and at_once:
                hidden, plan = slots.choose(hidden, choice, shapes.removed, stage.layer, last)
                plans: Plans = {before[0].group.images: plan}
            else:
                at_once = False
                plans = self._plans(shown, {total: self._plan(choice) for total, choice in choices.items()})
        if not at_once:
            hidden = self._shorten(hidden, plans, shapes.removed, view, last)
        self.segments.append(Segment(stage.layer, slots.width, slots.source, slots.valid))
        self._change(stage.layer, kwargs)
        watch.stop()
        self._report(number, before, slots.visible, plans, watch, None if ahead is None else ahead.watch)
        self._start_ahead(number + 1)
        return hidden

    def _shorten(self, hidden: Tensor, plans: Plans, removed: Sequence[int], view: StageView, last: bool) -> Tensor:
        """Shorten the sequence by the plans of a stage, and put in what they make of the tokens."""
        before = self.sequence.visible
        shortened, compaction = self.sequence.shorten(hidden, plans, removed, view.index, last)
        if self.injection is not None:
            self.injection.compact(compaction, plans.values(), view.index, hidden)
        view.hidden = hidden  # from here on gradients flow
        for place, old in enumerate(before):
            plan = plans.get(old.group.images)
            if plan is not None and plan.selection() is not plan:
                made = content(plan, StageContext(old, plan.anchors.shape[1], view))
                made = made if self._ranks is None else parallel.first_ranks_tensor(made, self._ranks)
                shortened = self.sequence.put(shortened, place, made)
        return shortened

    def _plan(self, choice: Plan | Choice) -> Plan:
        plan = choice.plan() if isinstance(choice, Choice) else choice
        return plan if self._ranks is None else parallel.first_ranks(plan, self._ranks)

    @property
    def _chooses_at_once(self) -> bool:
        """Whether `Sequence.choose` is possible: no other rank, no image budgets and no injected features."""
        return self._ranks is None and self.per_image is None and self.injection is None

    def _report(
        self, number: int, before: list[Visible], after: list[Visible], plans: Plans,
        watch: Stopwatch | Untimed | None = None, beside: Stopwatch | Untimed | None = None,
    ) -> None:  # fmt: skip
        """Add a stage, and those before it that had nothing to drop."""
        while len(self.stages) < number:
            self._report(len(self.stages), before, before, {})
        stage, previous = self.program.stages[number], self.stages[-1] if self.stages else None
        self.stages.append(
            StageReport(stage.name, stage.layer, self.batch, before, after, plans, previous, watch, beside)
        )

    def _shown(self) -> list[Visible]:
        """What methods take for samples."""
        visible = self.sequence.visible
        return visible if self.per_image is None else self.per_image.visible(visible)

    def _plans(self, shown: Sequence[Visible], chosen: dict[int, Plan]) -> Plans:
        """Plans for samples, from those for what was shown."""
        return {(m,): p for m, p in chosen.items()} if self.per_image is None else self.per_image.join(shown, chosen)

    @functools.cached_property
    def _ranks(self) -> Any:
        """The tensor-parallel group; None: this process has every head."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        return parallel.group_of(self.adapter.decoder.layers[0].self_attn)

    def _start_ahead(self, number: int) -> None:
        """Stage `number` is the next: start what it can do before the decoder comes to it."""
        if self.lane is None or number >= len(self.program.stages) or self.layout is None:
            return
        stage, shapes = self.program.stages[number], self.layout.shapes.stages[number]
        if stage.ahead is None or not shapes.prunes:
            return
        work = stage.ahead
        view = StageView(self, stage.layer, self.adapter.decoder.layers[stage.layer], self.embeds)
        contexts = {
            visible.group.total: VisionContext(StageContext(visible, shapes.budgets[visible.group.total], view))
            for visible in self._shown()
            if visible.group.total in shapes.budgets
        }
        watch = Stopwatch(self.device) if self._timed else Untimed()
        self._ahead = Ahead(lambda: {total: work(ctx) for total, ctx in contexts.items()}, self.lane, watch)

    # -- what a stage asks for ---------------------------------------------------------------------------------------

    def last_slots(self, width: int) -> Tensor | None:
        """[B] slot of each sample's last token; None: the last slot."""
        if self.behind is not None:
            return (width - 1 - self.behind).expand(self.batch)
        valid = self.sequence.valid
        if valid is None:
            return None
        place = torch.arange(width, device=self.device)
        return torch.where(valid, place, 0).amax(1)

    def raters_now(self, raters: Tensor) -> Tensor:
        """Raters `[B, W]` among the prompt's last W slots, as they are among the last W of now."""
        source, valid = self.sequence.source, self.sequence.valid
        if source is not None:  # padding is in front now, so that they still are among the last
            place = source[:, -raters.shape[1] :] - (self.queries - raters.shape[1])
            raters = raters.gather(1, place.clamp(min=0)) & (place >= 0)
        return raters if valid is None else raters & valid[:, -raters.shape[1] :]

    def keys_seen(self, index: int, width: int) -> tuple[int, Tensor | None, Tensor | None]:
        """How many keys of earlier turns a layer has, the keys, and the key mask [B, p + n]."""
        length, past = self.history(index), None
        if length:
            past = caches.layer_keys(self.cache, index)
            if past is None:
                raise NotImplementedError(
                    "past_key_values: expected a DynamicCache on one device, to rank by attention"
                )
            past = past[:, :, :length]
        return length, past, self.keys_valid(index, width)

    def keys_valid(self, index: int, width: int) -> Tensor | None:
        """[B, p + n] bool: which keys of a layer are no padding; None: all."""
        before = caches.padding_of(self.cache.layers[index]) if self._history is not None else self.history_mask
        return caches.grown_mask(before, self.history(index), self.sequence.valid, self.batch, width, self.device)

    # -- afterwards --------------------------------------------------------------------------------------------------

    def finish(self, last_hidden_state: Tensor) -> Tensor:
        """Leave on the cache what later forwards need; give back `last_hidden_state` at the length that was put in, 0
        where pruned."""
        if self.cache is not None and (self.prunes or self._history is not None):
            kept = self.seen + self.prompt.last_visual + 1 if self.prompt is not None and self.groups else 0
            shift = self._later_shift()
            for segment, begin, end in self.spans():
                dropped = self.queries - segment.width
                if self._history is None:
                    if segment.keys is None:  # the decoder's own mask did for these layers
                        segment.keys = caches.grown_mask(
                            self.history_mask, self.seen, segment.valid, self.batch, segment.width, self.device
                        )
                    caches.prune_layers(self.cache, begin, end, dropped, segment.keys, kept, self.attached, shift)
                    continue
                for first, behind in caches.segments(self.cache, begin, end):
                    keys = self._keys.get(first)
                    caches.prune_layers(self.cache, first, behind, dropped, keys, kept, self.attached, shift)
            layers = self.cache.layers
            layers[0].pruned.padded = any(layer.pruned.valid is not None for layer in layers)
        return put_back(last_hidden_state, self.segments[-1].source, self.segments[-1].valid, self.queries)

    def finish_report(self) -> None:
        """Add the last stages, if they had nothing to drop."""
        visible, count = self.sequence.visible, len(self.program.stages)
        if len(self.stages) < count:
            self._report(count - 1, visible, visible, {})

    def spans(self) -> list[tuple[Segment, int, int]]:
        """Segments, their first layers, and the layers behind their last ones."""
        ends = [*(segment.layer for segment in self.segments[1:]), self.adapter.shape.num_layers]
        return [(segment, segment.layer, end) for segment, end in zip(self.segments, ends, strict=True)]

    def _segment_of_layer(self) -> list[Segment]:
        return [segment for segment, begin, end in self.spans() for _ in range(begin, end)]

    def hidden_states(self, states: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """What the decoder collected, its input and each layer's output, at the length that was put in."""
        if self.first and states[0] is not None:  # some decoders collect it before the hook of the layer
            states = [*self.first, *states[1:]]
        homes = self._segment_of_layer()
        paired = zip(states, [homes[0], *homes], strict=True)
        return tuple(h if h is None else put_back(h, s.source, s.valid, self.queries) for h, s in paired)

    def columns(self, itemsize: int) -> Columns:
        spans = [(end - begin, segment.width) for segment, begin, end in self.spans()]
        return Columns(self.batch, itemsize, self.seen, self.queries, self._history, spans)
