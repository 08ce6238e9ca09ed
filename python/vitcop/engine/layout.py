"""Where the visual tokens of a prompt are.

A prompt is read on the host once, at the start of a prefill: which slots hold visual tokens, which are padding, how
position ids run. From there on every shape is known, and nothing waits for the device.
"""

import copy
import functools
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcop.methods.base import Program

from .shapes import PrefillShapes, prefill_shapes
from .vision import KINDS, VisualTokens

Array = np.ndarray[Any, Any]


@dataclass
class Prompt:
    """The prompts of a batch on the host, as read from `input_ids`, the padding mask and the position ids."""

    kinds: Array  # [B, q] uint8: 0 where a slot holds text, k + 1 where it holds a visual token of KINDS[k]
    valid: Array | None  # [B, q] bool: this slot is not padding; None: no slot is
    counts: list[int]  # visual tokens of each sample
    lengths: list[int]  # slots of each sample that are not padding
    contiguous: bool = True  # padding is on the left, and position ids count up by one from slot to slot of the rest
    starts: tuple[tuple[int, ...], ...] | None = None  # first slot of each packed sample, row by row; None: not packed

    @functools.cached_property
    def visual(self) -> Array:
        """[B, q] bool: this slot holds a visual token."""
        found: Array = self.kinds > 0
        return found

    @functools.cached_property
    def slots(self) -> Array:
        """Those of all visual tokens, row by row."""
        return self.kinds.nonzero()[1]

    @property
    def padded(self) -> bool:
        return self.valid is not None

    @property
    def last_visual(self) -> int:
        """The last slot that is visual in any sample."""
        return int(self.slots[-1] if len(self.counts) == 1 else self.slots.max())

    @property
    def tail(self) -> int:
        """Slots after the last visual token, of the sample where they are the most."""
        ends = itertools.accumulate(self.counts)
        return (
            self.kinds.shape[1] - 1 - min(int(self.slots[e - 1]) for e, n in zip(ends, self.counts, strict=True) if n)
        )


def read_prompt(
    input_ids: Tensor,
    visual_ids: Mapping[str, int],
    padding_mask: Tensor | None,
    position_ids: Tensor | None = None,
    cached: bool = True,
) -> Prompt:
    """Read which slots of `input_ids [B, q]` are visual and which are padding.

    Args:
        visual_ids: the placeholder of each of `KINDS` that the model has.
        padding_mask: [B, >= q] or None. position_ids: [B or 1, q] as the caller gives them, or None.
        cached: False: no KV cache is filled, so that transformers takes any jump of position ids for the start of
            another sample of a packed row; True: only where they fall.

    Raises ValueError where a visual token is padding.
    """
    ids = _host(input_ids)
    batch, width = ids.shape
    kinds = np.zeros((batch, width), np.uint8)
    for kind, token in visual_ids.items():
        kinds[ids == token] = KINDS.index(kind) + 1
    counts = [int(np.count_nonzero(row)) for row in kinds]
    lengths, padded = [width] * batch, False
    valid = np.empty(0, bool)
    if padding_mask is not None:
        mask = _host(padding_mask)[:, -width:]
        padded = not mask.all()
    if padded:
        valid = mask != 0
        if (kinds.astype(bool) & ~valid).any():
            raise ValueError(
                "attention_mask: expected visual tokens to be unmasked, got a visual token marked as padding"
            )
        lengths = [int(n) for n in valid.sum(1)]
    contiguous = not padded or bool((np.diff(valid.view(np.int8), axis=1) >= 0).all())
    starts = None
    if position_ids is not None:
        steps = np.diff(_host(position_ids), axis=-1)
        jumps = (steps < 0) if cached else (steps != 1)
        if not padded and jumps.any():
            rows = np.broadcast_to(jumps, (batch, width - 1))
            starts = tuple((0, *(int(c) + 1 for c in row.nonzero()[0])) for row in rows)
        contiguous = contiguous and bool(((steps == 1) | ~valid[:, :-1] if padded else steps == 1).all())
    return Prompt(kinds, valid if padded else None, counts, lengths, contiguous, starts)


def _host(tensor: Tensor) -> Array:
    found: Array = tensor.cpu().numpy()
    return found


@dataclass
class Group:
    """The samples of a batch with the same number of visual tokens: everything about them has one shape.

    With budgets per image, the samples whose images have the same numbers of visual tokens; and, where methods choose,
    the images of a batch with the same number (`group_images`), which stand for samples there.
    """

    rows: Tensor | None  # [G] samples, None: the whole batch
    samples: list[int]  # the same on the host
    total: int  # m: visual tokens of each sample
    images: tuple[int, ...]  # those of each part with a budget of its own, in the order of the prompt
    slots: Tensor  # [G, m] where they are in the prompt
    end: Tensor  # [G, 1] where the sample's last one is
    flat: Tensor  # [G, m] which rows of the vision features they come from
    segment: Tensor  # [G, m] image, tile or frame of the token, counted within its sample, image after image
    order: Tensor  # [G, m] 0 to m - 1
    num_segments: int  # segments of a sample, at most
    max_segment: int  # tokens of a segment, at most
    ordered: bool  # no segment begins before another has ended (tiles of one picture take turns, row by row)
    whole: bool  # `flat` is all rows of the vision features, in order
    begins: list[int]  # which of its sample's visual tokens is the first, row by row

    def elsewhere(self, slots: Array, bounds: Sequence[int], device: torch.device) -> "Group":
        """The same images at other slots: those of all visual tokens, where each sample's begin."""
        moved = copy.copy(self)
        rows = [
            slots[bounds[sample] + begin : bounds[sample] + begin + self.total]
            for sample, begin in zip(self.samples, self.begins, strict=True)
        ]
        if len(rows) == 1:
            row = rows[0]
            end = bounds[self.samples[0] + 1]
            moved.slots, moved.end = _to(row[None], device), _to(slots[None, end - 1 : end], device)
        else:
            moved.slots = _to(np.stack(rows), device)
            moved.end = _to(np.stack([slots[bounds[sample + 1] - 1 :][:1] for sample in self.samples]), device)
        return moved


@dataclass(frozen=True)
class _Sample:
    """The visual tokens of one sample, on the host."""

    slots: Array  # [m]
    flat: Array  # [m]
    segment: Array  # [m]
    images: tuple[int, ...]  # tokens of each image or video
    apart: bool  # no image begins before another has ended


@dataclass
class Layout:
    """What follows from where the visual tokens of a prompt are, and from how many of them a method keeps."""

    groups: list[Group]
    images: list[Group] | None  # groups of images, where some sample has several and each has a budget of its own
    shapes: PrefillShapes


class Layouts:
    """What was found out about the images of the prompts met last.

    All of it but the slots depends on the images alone and not on where they stand in the text.
    """

    def __init__(self, program: Program, budget_per: str, limit: int = 8) -> None:
        self._program, self._budget_per, self._limit = program, budget_per, limit
        self._known: OrderedDict[Any, Layout] = OrderedDict()

    def get(self, prompt: Prompt, tokens: Sequence[VisualTokens], device: torch.device) -> Layout:
        """Raises as `group_samples` does, and ValueError for infeasible budgets."""
        kinds, counts, slots = prompt.kinds, prompt.counts, prompt.slots
        runs = [(run.kind, *run.image_tokens, run.segments().numpy().tobytes()) for run in tokens]
        tiles = any(getattr(run, "are_tiles", False) for run in tokens)  # what stands between them matters as well
        key = *counts, *runs, (kinds if tiles else kinds[kinds > 0]).tobytes(), device
        known = self._known.get(key)
        if known is None:
            with torch.inference_mode(False):  # it may serve a forward with gradients later
                self._known[key] = known = self._make(prompt, tokens, device)
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
            return known
        self._known.move_to_end(key)
        _check_ends(prompt)
        bounds = [0, *itertools.accumulate(counts)]
        groups = [group.elsewhere(slots, bounds, device) for group in known.groups]
        images = known.images
        if images is not None:
            images = [group.elsewhere(slots, bounds, device) for group in images]
        return Layout(groups, images, known.shapes)

    def _make(self, prompt: Prompt, tokens: Sequence[VisualTokens], device: torch.device) -> Layout:
        samples = _match_all(prompt, tokens)
        groups = _groups(samples, device, self._budget_per)
        images = None
        if any(len(group.images) > 1 for group in groups):
            images = _image_groups(samples, device, groups)
        alike = [(group.samples, group.images) for group in groups]
        return Layout(groups, images, prefill_shapes(self._program, alike, len(samples)))


def group_samples(
    prompt: Prompt, tokens: Sequence[VisualTokens], device: torch.device, budget_per: str = "sample"
) -> list[Group]:
    """Match the visual tokens of a prompt with the images and videos that give them, each kind in order, and group
    samples by their number, or (`budget_per="image"`) by the numbers of each image.

    Beam search repeats prompts after the images were encoded (transformers 5.2x): with e times as many placeholders as
    features, sample b belongs to prompt b // e.

    Raises ValueError where the two do not match, where images with budgets of their own are entangled, and where a
    visual token is the last token of its prompt.
    """
    return _groups(_match_all(prompt, tokens), device, budget_per)


def group_images(
    prompt: Prompt, tokens: Sequence[VisualTokens], device: torch.device, groups: Sequence[Group]
) -> list[Group]:
    """The images of `groups`, as `group_samples` with budgets per image has found them, grouped by their number of
    visual tokens. Rows are in the order of groups, of images, and of samples."""
    return _image_groups(_match_all(prompt, tokens), device, groups)


def _groups(samples: Sequence[_Sample], device: torch.device, budget_per: str) -> list[Group]:
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, sample in enumerate(samples):
        if budget_per == "image" and not sample.apart:
            raise ValueError(
                "budget_per: expected 'sample' where the tokens of one image stand among those of another, got 'image' "
                f"for sample {number}"
            )
        images = sample.images if budget_per == "image" else (len(sample.slots),)
        if len(sample.slots):
            alike.setdefault(images, []).append(number)
    return [
        _group([(b, samples[b], 0, sum(images)) for b in alike[images]], images, len(samples), device)
        for images in sorted(alike, key=lambda images: (sum(images), images))
    ]


def _image_groups(samples: Sequence[_Sample], device: torch.device, groups: Sequence[Group]) -> list[Group]:
    alike: dict[int, list[tuple[int, _Sample, int, int]]] = {}
    for group in groups:
        begin = 0
        for total in group.images:
            alike.setdefault(total, []).extend((b, samples[b], begin, begin + total) for b in group.samples)
            begin += total
    return [_group(alike[total], (total,), len(samples), device) for total in sorted(alike)]


def _group(
    members: Sequence[tuple[int, _Sample, int, int]], images: tuple[int, ...], batch: int, device: torch.device
) -> Group:
    """Of some tokens, from one to before another, of some samples."""
    numbers = [number for number, *_ in members]
    total = sum(images)
    slots = np.stack([sample.slots[begin:end] for _, sample, begin, end in members])
    flat = np.stack([sample.flat[begin:end] for _, sample, begin, end in members])
    segment = np.stack([sample.segment[begin:end] for _, sample, begin, end in members])
    segment -= segment.min(1, keepdims=True)
    num_segments = int(segment.max()) + 1
    order = np.arange(total)
    return Group(
        rows=None if numbers == list(range(batch)) else _to(np.array(numbers), device),
        samples=numbers,
        total=total,
        images=images,
        slots=_to(slots, device),
        end=_to(np.stack([sample.slots[-1:] for _, sample, _, _ in members]), device),
        flat=_to(flat, device),
        segment=_to(segment, device),
        order=_to(order, device).expand(len(numbers), -1),
        num_segments=num_segments,
        max_segment=total if num_segments == 1 else max(int(np.bincount(row).max()) for row in segment),
        ordered=num_segments == 1 or bool((np.diff(segment, axis=1) >= 0).all()),
        whole=batch == len(numbers) == 1 and total == int(flat.max()) + 1 and bool((flat[0] == order).all()),
        begins=[begin for _, _, begin, _ in members],
    )


def _match_all(prompt: Prompt, tokens: Sequence[VisualTokens]) -> list[_Sample]:
    images: dict[str, list[_Image]] = {kind: [] for kind in KINDS}
    available = 0
    for run in tokens:
        segments = np.split(run.segments().numpy(), np.cumsum(run.image_tokens)[:-1])
        for segment in segments[: len(run.image_tokens)]:
            images[run.kind].append((available, segment, getattr(run, "are_tiles", False)))
            available += len(segment)
    repeats, rest = divmod(sum(prompt.counts), available) if available else (0, sum(prompt.counts))
    if rest or repeats < 1 or len(prompt.counts) % repeats:
        kinds = " and ".join(f"{kind}s" for kind in KINDS if images[kind]) or "images"
        raise ValueError(
            f"input_ids: expected {available} visual tokens for the {kinds} given, got {sum(prompt.counts)}"
        )
    waiting = {kind: iter(images[kind]) for kind in KINDS}
    samples: list[_Sample] = []
    for sample in range(len(prompt.counts)):
        samples.append(samples[-1] if sample % repeats else _match(prompt.kinds[sample], waiting, sample))
    _check_ends(prompt)
    return samples


def _check_ends(prompt: Prompt) -> None:
    """Raise ValueError where a visual token is the last token of its prompt."""
    kinds = prompt.kinds
    last: Any = kinds[:, -1]
    if prompt.valid is not None:
        last = [k[v][-1] if v.any() else 0 for k, v in zip(kinds, prompt.valid, strict=True)]
    if any(last):
        raise ValueError(
            "input_ids: expected text after the last visual token of each sample, got a prompt that ends with one"
        )


_Image = tuple[int, Array, bool]  # its first row of the features, its segments, whether it may be a tile of an image


def _match(kinds: Array, waiting: Mapping[str, Iterator[_Image]], sample: int) -> _Sample:
    """One sample, from the images and videos that wait for their placeholders."""
    slots = (kinds > 0).nonzero()[0]
    kinds = kinds[slots]
    found = []  # (where its tokens are among the sample's, and what is known of it) per image
    for number, kind in enumerate(KINDS, start=1):
        places = (kinds == number).nonzero()[0]
        taken = 0
        while taken < len(places):
            first, segment, tile = next(waiting[kind], (0, None, False))
            if segment is None or taken + len(segment) > len(places):
                raise ValueError(
                    f"input_ids: expected the {kind} tokens of sample {sample} to be those of whole {kind}s, got "
                    f"{len(places)}, {len(places) - taken} of them for "
                    + (f"no {kind}" if segment is None else f"the next one of {len(segment)}")
                )
            found.append((places[taken : taken + len(segment)], first, segment, tile))
            taken += len(segment)
    flat, segments = np.empty_like(slots), np.empty_like(slots)
    images: list[int] = []
    begin, behind, apart = 0, -1, True  # behind: the slot after the last tile, where the next may be of the same image
    for places, first, segment, tile in sorted(found, key=lambda image: int(image[0][0])):
        flat[places] = np.arange(first, first + len(places))
        segments[places] = segment + begin
        begin += int(segment.max()) + 1
        apart = apart and int(places[-1]) - int(places[0]) == len(places) - 1
        if tile and int(slots[places[0]]) == behind:
            images[-1] += len(places)
        else:
            images.append(len(places))
        behind = int(slots[places[-1]]) + 1 if tile else -1
    return _Sample(slots, flat, segments, tuple(images), apart)


def _to(array: Array, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


@functools.lru_cache(maxsize=64)
def grid_positions(rows: int, cols: int, device: torch.device) -> Tensor:
    """`[rows*cols, 2]` float32: (row, col)/(rows, cols) of a raster, in [0, 1)."""
    row = torch.arange(rows, device=device, dtype=torch.float32) / rows
    col = torch.arange(cols, device=device, dtype=torch.float32) / cols
    return torch.stack(torch.meshgrid(row, col, indexing="ij"), dim=-1).flatten(0, 1)
