"""Memory of a prefill: what Eq. 8's tokens make of it, and what the device's allocator has seen."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DecoderShape:
    """What the costs of a decoder depend on."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_key_heads: int
    head_dim: int


@dataclass(frozen=True)
class Footprint:
    """Bytes of a decoder's prefill."""

    cache: int  # KV cache afterwards
    peak: int  # most of KV cache and activations at a time


def footprint(
    shape: DecoderShape, batch: int, itemsize: int, history: Sequence[int], columns: Sequence[int]
) -> Footprint:
    """Computed: `columns[l]` tokens of each sample go through layer l, whose cache held `history[l]` before.

    While layer l runs, the caches of the layers up to it are there, and the widest moment of its gated MLP: of every
    token three vectors of the hidden size (the layer's input, the residual stream, its norm) and three of the
    intermediate size (both branches and their product). Attention is one that makes no matrix of tokens by tokens, and
    gradients are off. Weights, embeddings and vision features are not counted.
    """
    column = 2 * batch * shape.num_key_heads * shape.head_dim * itemsize
    token = 3 * batch * (shape.hidden_size + shape.intermediate_size) * itemsize
    held = sum(history) * column
    peaks = [
        held + column * kept + token * width for kept, width in zip(itertools.accumulate(columns), columns, strict=True)
    ]
    return Footprint(held + column * sum(columns), max(peaks, default=held))


@dataclass
class Columns:
    """How many tokens of each sample went through each decoder layer in a prefill, and how many its cache held."""

    batch: int
    itemsize: int
    seen: int  # tokens of earlier turns, in the prompt's coordinates
    queries: int
    history: Sequence[int] | None  # columns that each layer's cache held before; None: `seen`
    spans: Sequence[tuple[int, int]]  # how many layers in turn had how many tokens

    def footprint(self, shape: DecoderShape, pruned: bool) -> Footprint:
        """Of this prefill as it was, or as it would have been without pruning."""
        layers = shape.num_layers
        if pruned:
            history = [self.seen] * layers if self.history is None else self.history
            widths = [width for count, width in self.spans for _ in range(count)]
            return footprint(shape, self.batch, self.itemsize, history, widths)
        return footprint(shape, self.batch, self.itemsize, [self.seen] * layers, [self.queries] * layers)


def allocated(device: torch.device) -> tuple[int, int] | None:
    """Bytes that PyTorch has given out on a GPU, now and at most since the process or the user last reset the peak.

    These are counters on the host: reading them waits for nothing. None on a CPU, where PyTorch does not count, and
    where the peak of the process (`ru_maxrss`) says nothing of one prefill; None with allocators that do not count.
    """
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    except RuntimeError:  # a pluggable allocator
        return None


class PeakWatch:
    """The peak of the allocator between `PeakWatch(device)` and `stop()`, without touching the user's statistics."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = allocated(device)

    def stop(self) -> tuple[int, int] | None:
        """(peak, what was allocated at the start); None where a higher peak came before, which hides this one, or where
        nothing is counted."""
        after = allocated(self._device)
        if self._before is None or after is None:
            return None
        now, highest = self._before
        return (after[1], now) if after[1] > highest or highest == now else None
