"""Where the visual tokens of a prompt are.

A prompt is read on the host once, at the start of a prefill: which slots hold visual tokens, which are padding. From
there on every shape is known, and nothing waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """The prompts of a batch, as read from `input_ids` and the padding mask. Tensors are on the CPU."""

    visual: Tensor  # [B, q] bool: this slot holds a visual token
    valid: Tensor  # [B, q] bool: this slot is not padding
    counts: list[int]  # visual tokens of each sample
    lengths: list[int]  # slots of each sample that are not padding

    @property
    def last_visual(self) -> int:
        """The last slot that is visual in any sample."""
        return int(self.visual.any(0).nonzero().max())

    @property
    def padded(self) -> bool:
        return any(n < self.valid.shape[1] for n in self.lengths)


def read_prompt(input_ids: Tensor, visual_ids: Sequence[int], padding_mask: Tensor | None) -> Prompt:
    """Read which slots of `input_ids [B, q]` are visual and which are padding: one copy to the host.

    Raises ValueError where a visual token is padding or the last token of a prompt.
    """
    code = torch.zeros_like(input_ids, dtype=torch.uint8)
    for token in visual_ids:
        code = code | (input_ids == token).to(torch.uint8)
    if padding_mask is not None:
        code = code | (padding_mask[:, -input_ids.shape[1] :].to(code.device) == 0).to(torch.uint8) * 2
    code = code.cpu()
    visual, valid = (code & 1).bool(), code < 2
    if bool((visual & ~valid).any()):
        raise ValueError("attention_mask: expected visual tokens to be unmasked, got a visual token marked as padding")
    last = valid.shape[1] - 1 - valid.flip(1).to(torch.uint8).argmax(1)
    if bool(visual.gather(1, last[:, None]).any()):
        raise ValueError(
            "input_ids: expected text after the last visual token of each sample, got a prompt that ends with one"
        )
    return Prompt(visual, valid, visual.sum(1).tolist(), valid.sum(1).tolist())


@dataclass(frozen=True)
class Group:
    """The samples of a batch with the same number of visual tokens: everything about them has one shape."""

    rows: Tensor | None  # [G] samples, None: the whole batch
    samples: list[int]  # the same on the host
    total: int  # m: visual tokens of each sample
    slots: Tensor  # [G, m] where they are in the prompt
    flat: Tensor  # [G, m] which rows of the vision features they come from
    segment: Tensor  # [G, m] image of the token, counted within its sample
    num_segments: int  # images of a sample, at most
    max_segment: int  # tokens of an image, at most


def group_samples(prompt: Prompt, image_tokens: Sequence[int], device: torch.device) -> list[Group]:
    """Match the visual tokens of a prompt with the images that give them, in order, and group samples by their number.

    Beam search repeats prompts after the images were encoded (transformers 5.2x): with e times as many placeholders as
    features, sample b belongs to prompt b // e.

    Args:
        image_tokens: tokens of each image, in the order of the prompt.

    Raises ValueError when the two do not match.
    """
    placeholders, available = sum(prompt.counts), sum(image_tokens)
    repeats, rest = divmod(placeholders, available) if available else (0, placeholders)
    if rest or repeats < 1 or len(prompt.counts) % repeats:
        raise ValueError(f"input_ids: expected {available} visual tokens for the images given, got {placeholders}")

    images: list[list[int]] = []  # per sample: which images
    start: list[int] = []  # per sample: its first token among the features
    image = token = 0
    for sample, count in enumerate(prompt.counts):
        if sample % repeats:  # a repetition of the sample before
            images.append(images[-1])
            start.append(start[-1])
            continue
        begin, taken = image, 0
        while taken < count:
            taken += image_tokens[image]
            image += 1
        if taken != count:
            raise ValueError(
                f"input_ids: expected the visual tokens of sample {sample} to be those of whole images, got {count} "
                f"for images of {list(image_tokens[begin:image])}"
            )
        images.append(list(range(begin, image)))
        start.append(token)
        token += count

    groups = []
    for total in sorted(set(prompt.counts) - {0}):
        samples = [b for b, count in enumerate(prompt.counts) if count == total]
        slots = prompt.visual[samples].nonzero()[:, 1].view(len(samples), total)
        flat = torch.tensor([start[b] for b in samples])[:, None] + torch.arange(total)
        sizes = [[image_tokens[i] for i in images[b]] for b in samples]
        segment = torch.stack([torch.arange(len(s)).repeat_interleave(torch.tensor(s)) for s in sizes])
        whole = len(samples) == len(prompt.counts)
        groups.append(
            Group(
                rows=None if whole else _to(torch.tensor(samples), device),
                samples=samples,
                total=total,
                slots=_to(slots, device),
                flat=_to(flat, device),
                segment=_to(segment, device),
                num_segments=max(map(len, sizes)),
                max_segment=max(map(max, sizes)),
            )
        )
    return groups


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def grid_positions(rows: int, cols: int, device: torch.device) -> Tensor:
    """`[rows*cols, 2]` float32: (row, col)/(rows, cols) of a raster, in [0, 1)."""
    row = torch.arange(rows, device=device, dtype=torch.float32) / rows
    col = torch.arange(cols, device=device, dtype=torch.float32) / cols
    return torch.stack(torch.meshgrid(row, col, indexing="ij"), dim=-1).flatten(0, 1)
