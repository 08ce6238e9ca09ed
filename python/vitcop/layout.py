"""Where the visual tokens of a prompt are.

A prompt is read on the host once, at the start of a prefill: which slots hold visual tokens, which are padding. From
there on every shape is known, and nothing waits for the device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .adapters.base import VisualTokens

KINDS = ("image", "video")
"""What a placeholder of a prompt can stand for."""


@dataclass(frozen=True)
class Prompt:
    """The prompts of a batch, as read from `input_ids` and the padding mask. Tensors are on the CPU."""

    kinds: Tensor  # [B, q] uint8: 0 where a slot holds text, k + 1 where it holds a visual token of KINDS[k]
    valid: Tensor  # [B, q] bool: this slot is not padding
    counts: list[int]  # visual tokens of each sample
    lengths: list[int]  # slots of each sample that are not padding

    @property
    def visual(self) -> Tensor:
        """[B, q] bool: this slot holds a visual token."""
        return self.kinds > 0

    @property
    def last_visual(self) -> int:
        """The last slot that is visual in any sample."""
        return int(self.visual.any(0).nonzero().max())

    @property
    def tail(self) -> int:
        """Slots after the last visual token, of the sample where they are the most."""
        return int(self.visual[self.visual.any(1)].flip(1).to(torch.uint8).argmax(1).max())

    @property
    def padded(self) -> bool:
        return any(n < self.valid.shape[1] for n in self.lengths)


def read_prompt(input_ids: Tensor, visual_ids: Mapping[str, int], padding_mask: Tensor | None) -> Prompt:
    """Read which slots of `input_ids [B, q]` are visual and which are padding: one copy to the host.

    Args:
        visual_ids: the placeholder of each of `KINDS` that the model has.

    Raises ValueError where a visual token is padding or the last token of a prompt.
    """
    code = torch.zeros_like(input_ids, dtype=torch.uint8)
    for kind, token in visual_ids.items():
        code = code | (input_ids == token).to(torch.uint8) * (KINDS.index(kind) + 1)
    if padding_mask is not None:
        code = code | (padding_mask[:, -input_ids.shape[1] :].to(code.device) == 0).to(torch.uint8) * 4
    code = code.cpu()
    kinds, valid = code & 3, code < 4
    visual = kinds > 0
    if bool((visual & ~valid).any()):
        raise ValueError("attention_mask: expected visual tokens to be unmasked, got a visual token marked as padding")
    last = valid.shape[1] - 1 - valid.flip(1).to(torch.uint8).argmax(1)
    if bool(visual.gather(1, last[:, None]).any()):
        raise ValueError(
            "input_ids: expected text after the last visual token of each sample, got a prompt that ends with one"
        )
    return Prompt(kinds, valid, visual.sum(1).tolist(), valid.sum(1).tolist())


@dataclass(frozen=True)
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
    num_segments: int  # segments of a sample, at most
    max_segment: int  # tokens of a segment, at most
    ordered: bool  # no segment begins before another has ended (tiles of one picture take turns, row by row)


@dataclass(frozen=True)
class _Sample:
    """The visual tokens of one sample, on the CPU."""

    slots: Tensor  # [m]
    flat: Tensor  # [m]
    segment: Tensor  # [m]
    images: tuple[int, ...]  # tokens of each image or video
    apart: bool  # no image begins before another has ended


def group_samples(
    prompt: Prompt, tokens: Sequence["VisualTokens"], device: torch.device, budget_per: str = "sample"
) -> list[Group]:
    """Match the visual tokens of a prompt with the images and videos that give them, each kind in order, and group
    samples by their number, or (`budget_per="image"`) by the numbers of each image.

    Beam search repeats prompts after the images were encoded (transformers 5.2x): with e times as many placeholders as
    features, sample b belongs to prompt b // e.

    Raises ValueError when the two do not match, or images with budgets of their own are entangled.
    """
    samples = _match_all(prompt, tokens)
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


def group_images(
    prompt: Prompt, tokens: Sequence["VisualTokens"], device: torch.device, groups: Sequence[Group]
) -> list[Group]:
    """The images of `groups`, as `group_samples` with budgets per image has found them, grouped by their number of
    visual tokens. Rows are in the order of groups, of images, and of samples."""
    samples = _match_all(prompt, tokens)
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
    slots = torch.stack([sample.slots[begin:end] for _, sample, begin, end in members])
    flat = torch.stack([sample.flat[begin:end] for _, sample, begin, end in members])
    segment = torch.stack([sample.segment[begin:end] for _, sample, begin, end in members])
    segment = segment - segment.amin(1, keepdim=True)
    return Group(
        rows=None if numbers == list(range(batch)) else _to(torch.tensor(numbers, device="cpu"), device),
        samples=numbers,
        total=sum(images),
        images=images,
        slots=_to(slots, device),
        end=_to(torch.stack([sample.slots[-1:] for _, sample, _, _ in members]), device),
        flat=_to(flat, device),
        segment=_to(segment, device),
        num_segments=int(segment.max()) + 1,
        max_segment=max(int(row.bincount().max()) for row in segment),
        ordered=bool((segment.diff() >= 0).all()),
    )


def _match_all(prompt: Prompt, tokens: Sequence["VisualTokens"]) -> list[_Sample]:
    images: dict[str, list[_Image]] = {kind: [] for kind in KINDS}
    available = 0
    for run in tokens:
        for segment in run.segments().split(list(run.image_tokens)):
            images[run.kind].append((available, segment, getattr(run, "are_tiles", False)))
            available += len(segment)
    repeats, rest = divmod(sum(prompt.counts), available) if available else (0, sum(prompt.counts))
    if rest or repeats < 1 or len(prompt.counts) % repeats:
        raise ValueError(
            f"input_ids: expected {available} visual tokens for the images given, got {sum(prompt.counts)}"
        )
    waiting = {kind: iter(images[kind]) for kind in KINDS}
    samples: list[_Sample] = []
    for sample in range(len(prompt.counts)):
        samples.append(samples[-1] if sample % repeats else _match(prompt.kinds[sample], waiting, sample))
    return samples


_Image = tuple[int, Tensor, bool]  # its first row of the features, its segments, whether it may be a tile of an image


def _match(kinds: Tensor, waiting: Mapping[str, Iterator[_Image]], sample: int) -> _Sample:
    """One sample, from the images and videos that wait for their placeholders."""
    slots = (kinds > 0).nonzero()[:, 0]
    kinds = kinds[slots]
    found = []  # (where its tokens are among the sample's, and what is known of it) per image
    for number, kind in enumerate(KINDS, start=1):
        places = (kinds == number).nonzero()[:, 0]
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
    flat, segments = torch.empty_like(slots), torch.empty_like(slots)
    images: list[int] = []
    begin, behind, apart = 0, -1, True  # behind: the slot after the last tile, where the next may be of the same image
    for places, first, segment, tile in sorted(found, key=lambda image: int(image[0][0])):
        flat[places] = torch.arange(first, first + len(places), device="cpu")
        segments[places] = segment + begin
        begin += int(segment.max()) + 1
        apart = apart and bool((places.diff() == 1).all())
        if tile and int(slots[places[0]]) == behind:
            images[-1] += len(places)
        else:
            images.append(len(places))
        behind = int(slots[places[-1]]) + 1 if tile else -1
    return _Sample(slots, flat, segments, tuple(images), apart)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def grid_positions(rows: int, cols: int, device: torch.device) -> Tensor:
    """`[rows*cols, 2]` float32: (row, col)/(rows, cols) of a raster, in [0, 1)."""
    row = torch.arange(rows, device=device, dtype=torch.float32) / rows
    col = torch.arange(cols, device=device, dtype=torch.float32) / cols
    return torch.stack(torch.meshgrid(row, col, indexing="ij"), dim=-1).flatten(0, 1)


def put_back(hidden: Tensor, source: Tensor | None, valid: Tensor | None, length: int) -> Tensor:
    """`[B, n, C]` of a shortened prompt -> `[B, length, C]`: every token in its own slot, 0 where one is gone.

    Args:
        source: `[B, n]` slot that each token came from, None: nothing was shortened. valid: `[B, n]` bool, False for
            padding, or None.
    """
    if source is None:
        return hidden
    target = source if valid is None else source.masked_fill(~valid, length)
    target = target.to(hidden.device)[..., None].expand_as(hidden)
    full = hidden.new_zeros(hidden.shape[0], length + 1, hidden.shape[-1])
    return full.scatter(1, target, hidden)[:, :-1]
