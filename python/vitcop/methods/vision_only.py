"""The visual half of ViTCoP: Stage I and VIC with merging, all of it before the decoder.

It asks nothing of the decoder and leaves a constant number of tokens, so a server that cannot prune inside decoder
layers (paged caches have one length a sequence) can run it: see `vitcop.serving`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import vitcop_kernels as ops

from .base import Plan, Program, Stage
from .clusters import cluster_segments
from .schedule import Budgeted

VERSION = 1
"""Of the choice of tokens. It is part of the keys under which servers cache what an image became: count it up with any
change of what comes out."""


class Seen(Protocol):
    """The part of `Context` that is known before the decoder is read: what a server has to offer."""

    @property
    def count(self) -> int: ...
    @property
    def budget(self) -> int: ...
    @property
    def num_segments(self) -> int: ...
    @property
    def max_segment(self) -> int: ...
    @property
    def ordered(self) -> bool: ...
    @property
    def saliency(self) -> Tensor: ...
    @property
    def features(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def segment(self) -> Tensor: ...


@dataclass
class VisionOnly(Budgeted):
    """`VisionOnly(retain=64)`: of each sample, or with `budget_per="image"` of each image, 64 tokens.

    1. Stage I: the tokens that [CLS] attends to most go on; half of them, or twice the budget where that is more.
       Line breaks, which no patch made, go first.
    2. VIC: density peaks (Eq. 2-3) of the tower's keys make `round(merged_share * budget)` clusters of those, each
       image, tile or frame clustered by itself, in proportion to its tokens.
    3. Each cluster keeps its elites, those that [CLS] attends to most, as many as its share of the rest of the budget
       (Eq. 5), and the mean of its other tokens (Eq. 6).

    Outputs stand where their anchors stood (an elite itself; the middle token of a mean), with contiguous position
    ids. Means are taken of what the projector makes of the tokens.

    Args:
        retain, retention: tokens that come out, or their share.
        merged_share: share of them that are means of clusters. Half is what retained most on pictures of vitcop-tiny's
            validation split at a ninth and two ninths of the tokens, three quarters about as much: with fewer clusters
            elites crowd where [CLS] looks, with clusters alone counting and yes/no questions lose.
        stage1_ratio: share of the tokens that Stage I keeps. d_c, tau: as in `ViTCoP`.

    Raises:
        ValueError: shares outside (0, 1], no budget, or two.
    """

    merged_share: float = 1 / 2
    stage1_ratio: float = 1 / 2
    d_c: float = 8.0
    tau: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("merged_share", "stage1_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in (0, 1], got {getattr(self, name)!r}")

    def program(self, num_layers: int) -> Program:
        def counts(total: int) -> Sequence[int]:
            return [max(1, round(self.average(total)))]

        return Program([Stage("vision only", 0, self.select)], counts)

    def split(self, total: int, tokens: int) -> tuple[int, int]:
        """(tokens after Stage I, clusters of them) where `tokens` of `total` are to come out."""
        return (
            min(total, max(math.floor(self.stage1_ratio * total), 2 * tokens)),
            max(1, round(self.merged_share * tokens)),
        )

    def select(self, ctx: Seen) -> Plan:
        """The plan for G samples (images)."""
        left, clusters = self.split(ctx.count, ctx.budget)
        best = ops.select_tokens(ctx.saliency, left, largest=True)  # [G, left]
        features, positions = (
            x.gather(1, best[..., None].expand(-1, -1, x.shape[-1])) for x in (ctx.features, ctx.positions)
        )
        if ctx.num_segments == 1:
            found = ops.vic_cluster(features, positions, self.d_c, self.tau, clusters)[0]
        else:
            longest = min(left, ctx.max_segment)
            centers = min(longest, clusters)

            def wanted(lengths: Tensor) -> Tensor:
                return (lengths * clusters).div(left, rounding_mode="floor")

            found = cluster_segments(
                features, positions, ctx.segment.gather(1, best), num_segments=ctx.num_segments, longest=longest,
                ordered=ctx.ordered, centers=centers, wanted=wanted, d_c=self.d_c, tau=self.tau,
            )  # fmt: skip
            clusters = centers * ctx.num_segments
        labels = torch.full_like(ctx.segment, -1).scatter(1, best, found)
        perm, offsets, anchors, merged = ops.plan_tokens(labels, -ctx.saliency, clusters, ctx.budget)
        return Plan(anchors, perm, offsets, merged, labels)
