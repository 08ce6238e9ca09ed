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
    """The samples of a batch with the same number of visual tokens: everything about them has one shape."""

    rows: Tensor | None  # [G] samples, None: the whole batch
    samples: list[int]  # the same on the host
    total: int  # m: visual tokens of each sample
    slots: Tensor  # [G, m] where they are in the prompt
    flat: Tensor  # [G, m] which rows of the vision features they come from
    segment: Tensor  # [G, m] image, tile or frame of the token, counted within its sample, image after image
    num_segments: int  # segments of a sample, at most
    max_segment: int  # tokens of a segment, at most
    ordered: bool  # no segment begins before another has ended (tiles of one picture take turns, row by row)


def group_samples(prompt: Prompt, tokens: Sequence["VisualTokens"], device: torch.device) -> list[Group]:
    """Match the visual tokens of a prompt with the images and videos that give them, each kind in order, and group
    samples by their number.

    Beam search repeats prompts after the images were encoded (transformers 5.2x): with e times as many placeholders as
    features, sample b belongs to prompt b // e.

    Raises ValueError when the two do not match.
    """
    images: dict[str, list[tuple[int, Tensor]]] = {kind: [] for kind in KINDS}  # first row of the features, segments
    available = 0
    for run in tokens:
        for segment in run.segments().split(list(run.image_tokens)):
            images[run.kind].append((available, segment))
            available += len(segment)
    repeats, rest = divmod(sum(prompt.counts), available) if available else (0, sum(prompt.counts))
    if rest or repeats < 1 or len(prompt.counts) % repeats:
        raise ValueError(
            f"input_ids: expected {available} visual tokens for the images given, got {sum(prompt.counts)}"
        )
    waiting = {kind: iter(images[kind]) for kind in KINDS}
    rows: list[tuple[Tensor, Tensor]] = []  # per sample: flat, segment
    for sample in range(len(prompt.counts)):
        rows.append(rows[-1] if sample % repeats else _match(prompt.kinds[sample], waiting, sample))

    groups = []
    for total in sorted(set(prompt.counts) - {0}):
        samples = [b for b, count in enumerate(prompt.counts) if count == total]
        slots = prompt.visual[samples].nonzero()[:, 1].view(len(samples), total)
        flat, segment = (torch.stack(parts) for parts in zip(*(rows[b] for b in samples), strict=True))
        groups.append(
            Group(
                rows=None if len(samples) == len(prompt.counts) else _to(torch.tensor(samples), device),
                samples=samples,
                total=total,
                slots=_to(slots, device),
                flat=_to(flat, device),
                segment=_to(segment, device),
                num_segments=int(segment.max()) + 1,
                max_segment=max(int(row.bincount().max()) for row in segment),
                ordered=bool((segment.diff() >= 0).all()),
            )
        )
    return groups


def _match(kinds: Tensor, waiting: Mapping[str, Iterator[tuple[int, Tensor]]], sample: int) -> tuple[Tensor, Tensor]:
    """`flat [m]` and `segment [m]` of one sample, from the images and videos that wait for their placeholders."""
    kinds = kinds[kinds > 0]
    found = []  # (where its tokens are among the sample's, its first row of the features, its segments) per image
    for number, kind in enumerate(KINDS, start=1):
        places = (kinds == number).nonzero()[:, 0]
        taken = 0
        while taken < len(places):
            first, segment = next(waiting[kind], (0, None))
            if segment is None or taken + len(segment) > len(places):
                raise ValueError(
                    f"input_ids: expected the {kind} tokens of sample {sample} to be those of whole {kind}s, got "
                    f"{len(places)}, {len(places) - taken} of them for "
                    + (f"no {kind}" if segment is None else f"the next one of {len(segment)}")
                )
            found.append((places[taken : taken + len(segment)], first, segment))
            taken += len(segment)
    flat, segments = torch.empty_like(kinds, dtype=torch.int64), torch.empty_like(kinds, dtype=torch.int64)
    begin = 0
    for places, first, segment in sorted(found, key=lambda image: int(image[0][0])):
        flat[places] = torch.arange(first, first + len(places))
        segments[places] = segment + begin
        begin += int(segment.max()) + 1
    return flat, segments


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
