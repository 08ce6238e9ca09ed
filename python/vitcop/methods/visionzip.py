"""VisionZip (Yang et al., CVPR 2025): what [CLS] attends to stays, the rest merges, both before the projector."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import vitcop_kernels as ops

from .base import Context, Plan, Program, Stage
from .schedule import Budgeted, segments


@dataclass
class VisionZip(Budgeted):
    """All pruning is done before the decoder, on the hidden states of the vision tower that the projector gets.

    Dominant tokens: [CLS] itself and those that it attends to most. Of the others, every (n // c)-th is the target
    of a contextual token: each of the rest joins its most similar target (cosine of the keys' mean over heads), and the
    contextual token is the target's state plus the mean of those that joined it, projected. The order is [CLS],
    dominant, contextual. Position ids are contiguous.

    Towers without [CLS] have that place for one more token, and rank by the mean attention that tokens receive; images
    in tiles, each of which has a [CLS], have it for one more as well. Line breaks, which no patch made, are kept last,
    are no targets and join none: of images hardly pruned some stay, as they are. Several images of a prompt share the
    budget (and bring a [CLS] each); the published code prunes them one by one, as `budget_per="image"` does.

    Args:
        retain, retention: tokens in all, 5 of 32 of them contextual: 162+30, 108+20 and 54+10, as published.
        contextual: c; None: that share.

    Raises:
        ValueError: no room for a dominant token besides [CLS]. NotImplementedError: an adapter that does not
        offer the tower's hidden states, or [CLS] tokens of images with unlike numbers of tokens.
    """

    contextual: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contextual is not None and (isinstance(self.contextual, bool) or self.contextual < 1):
            raise ValueError(f"contextual: expected a number of tokens, at least 1, got {self.contextual!r}")

    def split(self, total: int) -> tuple[int, int]:
        """(dominant, contextual) tokens of a sample that has `total` visual tokens; [CLS] counts as dominant."""
        tokens = max(1, round(self.average(total)))
        contextual = max(1, round(tokens * 5 / 32)) if self.contextual is None else self.contextual
        if tokens - contextual < 2:
            raise ValueError(
                f"infeasible budget: expected at least 2 dominant tokens, [CLS] and another, got {tokens} tokens of "
                f"which {contextual} are contextual"
            )
        return tokens - contextual, contextual

    def program(self, num_layers: int) -> Program:
        def counts(total: int) -> Sequence[int]:
            return [total if self.average(total) >= total else sum(self.split(total))]

        return Program([Stage("visionzip", 0, self._select)], counts)

    def _select(self, ctx: Context) -> Plan:
        dominant, contextual = self.split(ctx.total)
        samples, tokens = ctx.saliency.shape
        images = 0 if ctx.cls_states is None else ctx.num_segments
        if dominant <= images:
            raise ValueError(
                f"infeasible budget: expected more dominant tokens than the {images} [CLS] tokens of the images, got "
                f"{dominant}"
            )
        best = ops.select_tokens(ctx.saliency, dominant - images, largest=True)
        chosen = torch.zeros_like(ctx.saliency, dtype=torch.bool).scatter(1, best, True)
        rest = chosen.to(torch.uint8).argsort(dim=1, stable=True)[:, : tokens - best.shape[1]]  # ascending
        patch = ~ctx.saliency.isnan().gather(1, rest)  # no line break
        number = torch.where(patch, patch.cumsum(1) - 1, -1)
        step = patch.sum(1, keepdim=True).div(contextual, rounding_mode="floor").clamp(min=1)
        # 0: targets, 1: patches that join them, 2: line breaks, some of which stay where there are too few patches.
        role = torch.where(patch, 1 - ((number % step == 0) & (number < step * contextual)).long(), 2)
        by_role = rest.gather(1, role.argsort(dim=1, stable=True))
        targets, others = by_role.split([contextual, rest.shape[1] - contextual], dim=1)

        keys = ctx.features.unflatten(-1, (ctx.feature_heads, -1)).mean(2)
        unit = torch.nn.functional.normalize(keys.float(), dim=-1)  # [G, V, d]
        lost = ctx.saliency.isnan()
        alike = (_rows(unit, others) @ _rows(unit, targets).mT).masked_fill(lost.gather(1, targets)[:, None], -math.inf)
        joins = alike.argmax(-1).masked_fill(lost.gather(1, others), contextual)  # [G, n - c]; the first of equals

        # [CLS] before its image, contextual tokens behind everything.
        first = (torch.arange(images, device=best.device) * ctx.max_segment).expand(samples, -1)
        behind = best.new_full((samples, contextual), 3 * tokens - 2)
        wanted = torch.cat([3 * first - 1, 3 * best, behind], dim=1)
        order = wanted.argsort(dim=1, stable=True)  # [G, S]
        place = order.argsort(dim=1)
        dominants, means = place[:, images:dominant], place[:, dominant:]
        segment = torch.empty_like(chosen, dtype=torch.int64).scatter(1, best, dominants)
        outputs = torch.nn.functional.pad(means, (0, 1), value=ctx.budget)  # none, of line breaks
        segment = segment.scatter(1, targets, means).scatter(1, others, outputs.gather(1, joins))
        perm, offsets = segments(segment, ctx.budget)
        none = torch.full_like(segment, contextual)
        joined = segments(none.scatter(1, others, joins), contextual)
        return Plan(
            torch.cat([others[:, :images], best, targets], dim=1).gather(1, order), perm, offsets, order >= dominant,
            places=wanted.gather(1, order),
            hidden=functools.partial(_outputs, order, best, targets, joined),
        )  # fmt: skip


def _outputs(order: Tensor, best: Tensor, targets: Tensor, joined: tuple[Tensor, Tensor], ctx: Context) -> Tensor:
    """[G, S, C]: dominant tokens and line breaks as they are, [CLS] and contextual tokens projected."""
    states, cls = ctx.tower_states, ctx.cls_states
    images, own = 0 if cls is None else cls.shape[1], _rows(states, targets)
    lost = own.isnan().any(-1, keepdim=True)
    contextual = own.masked_fill(lost, 0) + ops.segment_mean(states, *joined)
    made = ctx.project(contextual if cls is None else torch.cat([cls, contextual], dim=1))
    contextual = torch.where(lost, _rows(ctx.hidden, targets), made[:, images:])
    return _rows(torch.cat([made[:, :images], _rows(ctx.hidden, best), contextual], dim=1), order)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """[G, V, D], [G, S] -> [G, S, D]"""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
