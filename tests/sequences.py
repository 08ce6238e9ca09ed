"""Random plans for the visual tokens of a sequence, as arguments of expand_plan."""

import torch
from support import reference
from torch import Tensor


def sequence(
    n: int, visual: int, size: int, merging: bool, padding: int = 0, room: int = 0
) -> tuple[tuple[Tensor | None, ...], dict[str, int]]:
    """A random plan for `visual` tokens among n slots, `padding` of them invalid: arguments of expand_plan.

    `room` more tokens and segments are not there.
    """
    valid = torch.ones(n, dtype=torch.bool)
    valid[torch.randperm(n)[:padding]] = False
    slots = valid.nonzero()[:, 0]
    slots = slots[torch.randperm(len(slots))[:visual]].sort().values
    perm = offsets = merged = None
    if merging:
        clusters = max(1, size // 3)
        plan = reference("plan_tokens", torch.randint(-1, clusters, (visual,)), torch.rand(visual), clusters, size)
        perm, offsets, anchors, merged = plan
        perm = torch.nn.functional.pad(perm, (0, room), value=-1)
        offsets = torch.nn.functional.pad(offsets, (0, room), value=visual + room)
        merged = torch.nn.functional.pad(merged, (0, room))
    else:
        anchors = torch.randperm(visual)[:size].sort().values
    kept = int((anchors >= 0).sum())
    slots, anchors = (torch.nn.functional.pad(t, (0, room), value=-1) for t in (slots, anchors))
    args = slots, anchors, perm, offsets, merged, valid if padding else None
    return args, dict(num_slots=n, out_len=n - padding - visual + kept)


def ragged() -> tuple[tuple[Tensor, ...], dict[str, int]]:
    """Three samples with 20, 14 and no visual tokens, padded on the left, in one call."""
    samples = [sequence(30, 20, 8, True, 0, 0), sequence(30, 14, 6, True, 4, 6), sequence(30, 0, 0, False, 8, 20)]
    parts = []
    for index, (width, fill) in enumerate([(20, -1), (8, -1), (20, -1), (9, 20), (8, False), (30, True)]):
        rows = []
        for args, _ in samples:
            row = args[index]
            row = torch.tensor([], dtype=torch.bool if index > 3 else torch.int64) if row is None else row[:width]
            rows.append(torch.nn.functional.pad(row, (0, width - len(row)), value=fill))
        parts.append(torch.stack(rows))
    return tuple(parts), dict(num_slots=30, out_len=max(shape["out_len"] for _, shape in samples))
