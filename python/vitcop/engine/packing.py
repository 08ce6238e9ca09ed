"""Packed samples: several samples in one row, whose position ids begin anew with each.

In front of the decoder they are put into rows of their own, padded on the left, and behind it into one row again. So
they see nothing of each other, and each has the budget and the position ids of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cache import text_ids
from .layout import Prompt

VARLEN = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments with which data collators tell attention kernels where samples begin."""


def check_lengths(arguments: Mapping[str, Any]) -> None:
    """Refuse lengths of packed samples that the position ids do not tell as well: those are what is read."""
    lengths = [arguments[name] for name in VARLEN[:2] if arguments.get(name) is not None]
    if not lengths:
        return
    ids = text_ids(arguments.get("position_ids"))
    uncached = arguments.get("use_cache") is False
    if ids is None:
        found = [0]
    else:
        steps = ids.diff(dim=-1)
        begins = (steps != 1) if uncached else (steps < 0)
        found = torch.nn.functional.pad(begins, (1, 0), value=True).flatten().nonzero().flatten().tolist()
    if any(given.tolist()[:-1] != found for given in lengths):
        raise NotImplementedError(
            "cu_seq_lens_q, cu_seq_lens_k: expected position_ids (of text, where there are several kinds) that begin "
            f"anew with each packed sample, and use_cache=False; got samples at {lengths[0].tolist()[:-1]}, and "
            f"position_ids that begin at {found}"
        )


def without_lengths(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the decoder without what is true of unpruned rows only."""
    return {name: value for name, value in kwargs.items() if name not in VARLEN}


class Packing:
    """Where the S samples of a packed batch `[B, q]` stand in a padded one `[S, w]`."""

    def __init__(self, prompt: Prompt, device: torch.device) -> None:
        assert prompt.starts is not None
        queries = prompt.kinds.shape[1]
        bounds = [
            (row * queries + begin, row * queries + end)
            for row, starts in enumerate(prompt.starts)
            for begin, end in zip(starts, (*starts[1:], queries), strict=True)
        ]
        width = max(end - begin for begin, end in bounds)
        place = np.stack([np.arange(end - width, end) for _, end in bounds])  # [S, w] in the flat batch
        valid = place >= np.array([begin for begin, _ in bounds])[:, None]
        place = np.where(valid, place, 0)
        kinds = np.where(valid, prompt.kinds.ravel()[place], 0).astype(np.uint8)
        counts = [int(n) for n in (kinds > 0).sum(1)]
        self.prompt = Prompt(kinds, valid, counts, [end - begin for begin, end in bounds])
        self.batch, self.queries = prompt.kinds.shape[0], queries
        self._place = torch.from_numpy(place).to(device)
        self._valid = torch.from_numpy(valid).to(device)
        self._flat = torch.from_numpy(valid.ravel().nonzero()[0]).to(device)  # [B*q] place in the padded batch

    def arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the decoder for the padded batch."""
        if kwargs.get("cache") is not None or kwargs.get("past_key_values") is not None:
            raise NotImplementedError(
                "Packed samples (position ids that begin anew within a row) cannot share a KV cache under pruning; "
                "call the model without one, with use_cache=False."
            )
        found = without_lengths(kwargs)
        embeds, ids = kwargs["inputs_embeds"], kwargs.get("position_ids")
        valid = self._valid.to(embeds.device)
        found["inputs_embeds"] = embeds.flatten(0, 1)[self._place] * valid[..., None]
        found["attention_mask"] = valid.long()
        if ids is not None:
            ids = ids.expand(*ids.shape[:-2], self.batch, -1)
            found["position_ids"] = ids.flatten(-2)[..., self._place]
        found["use_cache"] = False
        return found

    def packed(self, hidden: Tensor) -> Tensor:
        """`[S, w, C]` -> `[B, q, C]`"""
        return hidden.flatten(0, 1)[self._flat].unflatten(0, (self.batch, self.queries))
