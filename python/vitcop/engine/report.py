"""What a pruned prefill did and cost. Data only; nothing waits for the device until a value is read on the host."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitcop import budget
from vitcop.methods.base import Plan

from .compaction import Visible
from .memory import Columns, DecoderShape, Footprint


class Stopwatch:
    """Time between `start` and `stop`: by the clock on a CPU, by events on a GPU, which are waited for when read."""

    def __init__(self, device: torch.device) -> None:
        self._events = None
        self._seconds = 0.0
        if device.type == "cuda":
            self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))

    def start(self) -> None:
        if self._events is None:
            self._seconds = -time.perf_counter()
        else:
            self._events[0].record()

    def stop(self) -> None:
        if self._events is None:
            self._seconds += time.perf_counter()
        else:
            self._events[1].record()

    @property
    def seconds(self) -> float:
        if self._events is not None:
            self._events[1].synchronize()
            self._seconds = self._events[0].elapsed_time(self._events[1]) / 1000
            self._events = None
        return self._seconds


class Untimed:
    """Stands for the stopwatch of a stage inside a CUDA graph, where nothing can be timed from outside."""

    seconds = math.nan

    def start(self) -> None: ...

    def stop(self) -> None: ...


@dataclass
class StageReport:
    """What one stage did to the B samples of a batch. -1 pads what is ragged."""

    name: str
    layer: int  # the input of this decoder layer was pruned; 0: before the decoder
    batch: int
    before: list[Visible] = field(repr=False)  # visual tokens that the stage found, group by group
    after: list[Visible] = field(repr=False)  # and left
    # By the visual tokens of the sample, or of each of its images, where each has a budget of its own.
    plans: Mapping[tuple[int, ...], Plan] = field(default_factory=dict, repr=False)
    previous: "StageReport | None" = field(default=None, repr=False)
    stopwatch: Stopwatch | Untimed | None = field(default=None, repr=False)
    stopwatch_ahead: Stopwatch | Untimed | None = field(default=None, repr=False)

    @property
    def tokens_in(self) -> list[int]:
        """Visual tokens of each sample."""
        return self._numbers(self.before)

    @property
    def tokens_out(self) -> list[int]:
        """Visual tokens of each sample that are left."""
        return self._numbers(self.after)

    @property
    def kept(self) -> Tensor:
        """[B, S] int64: the token whose place each output takes, among the sample's unpruned visual tokens."""
        return self._join([(v.group.rows, v.origin) for v in self.after], max(self.tokens_out), -1)

    @property
    def merged(self) -> Tensor | None:
        """[B, S] bool: the output is a mean. None: no output is."""
        parts = [(rows, plan.merged) for rows, plan in self._planned() if plan.merged is not None]
        return self._join(parts, max(self.tokens_out), False) if parts else None

    @property
    def labels(self) -> Tensor | None:
        """[B, V_in] int64: cluster of each input token. None: the stage does not cluster."""
        parts = [(rows, plan.labels) for rows, plan in self._planned() if plan.labels is not None]
        return self._join(parts, max(self.tokens_in), -1) if parts else None

    @property
    def rows(self) -> dict[tuple[int, ...], list[int]]:
        """Samples of each plan."""
        return {v.group.images: v.group.samples for v in self.before}

    def _planned(self) -> list[tuple[Tensor | None, Plan]]:
        return [(v.group.rows, self.plans[v.group.images]) for v in self.before if v.group.images in self.plans]

    def _numbers(self, visible: Sequence[Visible]) -> list[int]:
        found = [0] * self.batch
        for v in visible:
            for sample in v.group.samples:
                found[sample] = v.slots.shape[1]
        return found

    def _join(self, parts: Sequence[tuple[Tensor | None, Tensor]], width: int, padding: int | bool) -> Tensor:
        """Tensors `[G, ...]` of all groups as one `[B, width]`."""
        if len(parts) == 1 and parts[0][0] is None:
            return parts[0][1]
        first = parts[0][1]
        joined = torch.full((self.batch, width), padding, dtype=first.dtype, device=first.device)
        for rows, part in parts:
            joined[slice(None) if rows is None else rows, : part.shape[1]] = part
        return joined

    @property
    def seconds(self) -> float:
        """Time that choosing took, also where it ran beside decoder layers; NaN where a CUDA graph was replayed."""
        return self.seconds_ahead + (0.0 if self.stopwatch is None else self.stopwatch.seconds)

    @property
    def seconds_ahead(self) -> float:
        """The part of `seconds` that ran on a side stream, beside the decoder layers before the stage; 0 on a CPU."""
        return 0.0 if self.stopwatch_ahead is None else self.stopwatch_ahead.seconds

    def segments(self, sample: int = 0) -> list[list[int]]:
        """For each output token of a sample: the unpruned visual tokens that it is made of."""
        if self.previous is not None:
            before = self.previous.segments(sample)
        else:
            before = [[i] for i in range(self.tokens_in[sample])]
        for images, rows in self.rows.items():
            if sample not in rows or images not in self.plans:
                continue
            plan, row = self.plans[images], rows.index(sample)
            if plan.perm is None or plan.offsets is None:
                return [before[i] for i in plan.anchors[row].tolist()]
            perm, offsets = plan.perm[row].tolist(), plan.offsets[row].tolist()
            chosen = (perm[a:b] for a, b in itertools.pairwise(offsets))
            return [sorted(token for i in members for token in before[i]) for members in chosen]
        return before


@dataclass(frozen=True)
class FlopsReport:
    """FLOPs of the decoder's prefill, mean per sample: by the paper's formula as printed, and as its tables count."""

    eq9: float
    eq9_unpruned: float
    counter: float
    counter_unpruned: float


@dataclass
class Report:
    """The latest prefill with visual tokens; empty before there was one."""

    stages: list[StageReport] = field(default_factory=list)
    visual_tokens: list[int] = field(default_factory=list)  # of each sample, before pruning
    text_tokens: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # Measured on a GPU: most bytes that PyTorch had given out while the decoder ran, weights and all else included, and
    # how many it had when the decoder began. None on a CPU, in replays of CUDA graphs, and where the peak before was
    # higher: `torch.cuda.reset_peak_memory_stats()` before the prefill. vitcop leaves these statistics alone.
    peak_bytes: int | None = None
    peak_bytes_before: int | None = None
    decoder: DecoderShape | None = field(default=None, repr=False)
    positions: str = "compact"  # how the method numbers the tokens
    columns: Columns | None = field(default=None, repr=False)
    _whole: list[str] = field(default_factory=list, repr=False)  # notes of this prefill

    def take(
        self, stages: list[StageReport], visual_tokens: list[int], text_tokens: list[int],
        kept_whole: Callable[[int], str | None],
    ) -> None:  # fmt: skip
        """Show another prefill, which has come to its end. kept_whole: of the program."""
        self.stages, self.visual_tokens, self.text_tokens = stages, visual_tokens, text_tokens
        totals = sorted({total for v in stages[0].before for total in v.group.images}) if stages else []
        before, self._whole = self._whole, [note for total in totals if (note := kept_whole(total)) is not None]
        self.notes[:] = [*self._whole, *(note for note in self.notes if note not in before)]

    @property
    def kv_bytes(self) -> int:
        """KV cache after the prefill, earlier turns included."""
        return self._footprint(pruned=True).cache

    @property
    def kv_bytes_unpruned(self) -> int:
        """The same without pruning."""
        return self._footprint(pruned=False).cache

    @property
    def computed_peak_bytes(self) -> int:
        """KV cache and activations of the decoder, by `memory.footprint`, not measured."""
        return self._footprint(pruned=True).peak

    @property
    def computed_peak_bytes_unpruned(self) -> int:
        """The same without pruning."""
        return self._footprint(pruned=False).peak

    def _footprint(self, pruned: bool) -> Footprint:
        if self.columns is None or self.decoder is None:
            return Footprint(0, 0)
        return self.columns.footprint(self.decoder, pruned)

    @property
    def selection_seconds(self) -> float:
        """Time that all stages took to choose."""
        return sum(stage.seconds for stage in self.stages)

    def layer_tokens(self, sample: int = 0) -> list[int]:
        """Visual tokens that each decoder layer computes on."""
        if self.decoder is None:
            return []
        bounds = [(0, self.visual_tokens[sample]), *((s.layer, s.tokens_out[sample]) for s in self.stages)]
        return [next(n for start, n in reversed(bounds) if start <= layer) for layer in range(self.decoder.num_layers)]

    @property
    def mean_tokens(self) -> float:
        """Visual tokens that a decoder layer computes on, mean over layers and samples."""
        per_layer = [n for sample in self._samples for n in self.layer_tokens(sample)]
        return sum(per_layer) / len(per_layer) if per_layer else 0.0

    @property
    def cr_int(self) -> float:
        """Eq. 10 as printed, over the samples with visual tokens; 0 when nothing was pruned."""
        kept = [n for sample in self._samples for n in _as_printed(self.layer_tokens(sample))]
        full = [self.visual_tokens[sample] for sample in self._samples for _ in self.layer_tokens(sample)]
        return 1 - sum(kept) / sum(full) if full else 0.0

    @property
    def flops(self) -> FlopsReport:
        """FLOPs of the prefill by both of the paper's counts, mean per sample."""
        if self.decoder is None or not self.visual_tokens:
            return FlopsReport(0.0, 0.0, 0.0, 0.0)
        shape, total = self.decoder, [0.0] * 4
        for sample, (visual, text) in enumerate(zip(self.visual_tokens, self.text_tokens, strict=True)):
            after = self.layer_tokens(sample)
            before = [visual] * shape.num_layers
            reading = [after[0], *after[:-1]]  # the counter reads a layer's input before the layer prunes
            costs = (
                _eq9(_as_printed(after), text, shape),
                _eq9(before, text, shape),
                _counter(reading, text, shape),
                _counter(before, text, shape),
            )
            total = [t + c for t, c in zip(total, costs, strict=True)]
        return FlopsReport(*(t / len(self.visual_tokens) for t in total))

    @property
    def _samples(self) -> list[int]:
        return [sample for sample, visual in enumerate(self.visual_tokens) if visual]


def _as_printed(tokens: list[int]) -> list[int]:
    """Eq. 9 and 10 count layers from 1: one layer fewer before the first boundary, one more after the last."""
    return [*tokens[1:], tokens[-1]] if tokens else []


def _eq9(visual: Sequence[int], text: int, shape: DecoderShape) -> float:
    return sum(budget.flops_layer(n + text, shape.hidden_size) for n in visual)


def _counter(visual: Sequence[int], text: int, shape: DecoderShape) -> float:
    return budget.flops_counter([n + text for n in visual], shape.hidden_size, shape.intermediate_size)
