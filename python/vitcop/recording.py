"""From the plans of a stage to its part of the report."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .context import Visible
from .methods.base import Plan, Stage
from .report import StageReport, Stopwatch, Untimed


def stage_report(
    stage: Stage, visible: Sequence[Visible], plans: dict[tuple[int, ...], Plan], origins: Sequence[Tensor], batch: int,
    watch: Stopwatch | Untimed, ahead: Stopwatch | Untimed | None, before: Sequence[StageReport],
) -> StageReport:  # fmt: skip
    """What a stage did to `visible`, the visual tokens that it found; origins: `[G, S]` of those that it left;
    before: the stages before it."""
    tokens_in, tokens_out = [0] * batch, [0] * batch
    kept, merged, labels = [], [], []
    for group, slots, origin in ((v.group, v.slots, origin) for v, origin in zip(visible, origins, strict=True)):
        plan = plans.get(group.images)
        for sample in group.samples:
            tokens_in[sample] = slots.shape[1]
            tokens_out[sample] = slots.shape[1] if plan is None else plan.anchors.shape[1]
        kept.append((group.rows, origin))
        if plan is not None and plan.merged is not None:
            merged.append((group.rows, plan.merged))
        if plan is not None and plan.labels is not None:
            labels.append((group.rows, plan.labels))
    return StageReport(
        stage.name, stage.layer, tokens_in, tokens_out,
        kept=_join(kept, batch, max(tokens_out), -1),
        merged=_join(merged, batch, max(tokens_out), False) if merged else None,
        labels=_join(labels, batch, max(tokens_in), -1) if labels else None,
        plans=plans,
        rows={v.group.images: v.group.samples for v in visible},
        previous=before[-1] if before else None,
        stopwatch=watch,
        stopwatch_ahead=ahead,
    )  # fmt: skip


def _join(parts: Sequence[tuple[Tensor | None, Tensor]], batch: int, width: int, padding: int | bool) -> Tensor:
    """Tensors `[G, ...]` of all groups as one `[B, width]`."""
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    first = parts[0][1]
    joined = torch.full((batch, width), padding, dtype=first.dtype, device=first.device)
    for rows, part in parts:
        joined[slice(None) if rows is None else rows, : part.shape[1]] = part
    return joined
