"""ViTCoP (Algorithm 1): CLS attention first, clusters and key norms at a shallow layer, key norms at a deep one."""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import vitcop_kernels as ops
from vitcop import budget

from .base import Choice, Context, Method, Positions, Program, Stage
from .clusters import cluster_segments
from .schedule import kept_whole


class _DefaultLayer(int):
    """A layer that the caller did not choose, and that moves with the depth of the decoder."""


SHALLOW, DEEP = _DefaultLayer(2), _DefaultLayer(22)

# What None stands for under each semantics.
DEFAULTS: dict[str, dict[str, str]] = {
    "paper": {
        "key_source": "layer", "heads": "l2", "merge": "mean", "quota": "exact", "positions": "compact",
        "features": "clip_key",
    },
    "released": {
        "key_source": "previous", "heads": "mean", "merge": "anchor_plus_mean", "quota": "released",
        "positions": "released", "features": "clip_key",
    },
}  # fmt: skip
CHOICES = {
    "semantics": ("paper", "released"),
    "saliency": ("key_norm", "attention", "key_norm_only"),
    "key_source": ("layer", "previous"),
    "heads": ("l2", "mean"),
    "merge": ("mean", "anchor_plus_mean"),
    "quota": ("exact", "floor", "released"),
    "positions": ("compact", "original", "released"),
    "features": ("clip_key", "hidden"),
}


@dataclass
class ViTCoP(Method):
    """Visual-textual collaborative pruning.

    Give `retain` (visual tokens kept on average over the decoder's layers), `retention` (their share), or the ratios.
    Samples too small for `retain` keep all their tokens; a `retention` that cannot be averaged is refused.

    Args:
        stage1_ratio, stage2_ratio, stage3_ratio: shares of the visual tokens that each stage keeps (pi1 to pi3); None:
            from Table 8 or the budget formula. stage1_ratio=1 switches Stage I off, deep_share=1 Stage III.
        center_ratio: clusters per token of Stage II (alpha); None: the authors' ratio for the retention.
        shallow_layer, deep_layer: the layers whose inputs Stages II and III prune. The defaults are for 32 layers; in
            decoders of other depths they move with the depth (the report says so), a layer given by the caller stays.
        deep_share: pi3/pi2. d_c: cutoff distance of the clustering. tau: its spatial limit, image side = 1.
        semantics: "paper", or "released" to do as the authors' code does, bugs included. It sets every None below.
        saliency: "key_norm"; "attention" ranks by the attention of the prompt's last token instead; "key_norm_only"
            ranks by key norms and does not cluster (both for Table 4).
        key_source: keys of the pruned "layer" itself, or of the "previous" one.
        heads: "l2" or "mean", see `vitcop_kernels.key_norms`.
        merge: "mean" or "anchor_plus_mean", see `vitcop_kernels.segment_mean`.
        quota: "exact", "floor" or "released", see `vitcop_kernels.plan_tokens`.
        positions: "compact" (contiguous after Stage I), "original" (every token keeps the id it has in the unpruned
            prompt), or "released" (compact, and after Stage III ids restart while decoding goes on at the old length).
        features: what is clustered, "clip_key" (keys of the vision tower) or "hidden" (the decoder's hidden states).
        stage1_power: in place of stage1_ratio, `pi1 = retention**stage1_power`, or less where that would leave Stage II
            nothing. 0: no Stage I; 1/2: Stages I and II cut by about the same factor.
        merged_share: in place of center_ratio, clusters per token that Stage II leaves (as in `VisionOnly`).

    Raises:
        ValueError: unknown options, infeasible budgets (some of them only when the number of tokens is known).
    """

    retain: int | None = None
    retention: float | None = None
    stage1_ratio: float | None = None
    stage2_ratio: float | None = None
    stage3_ratio: float | None = None
    center_ratio: float | None = None
    shallow_layer: int = SHALLOW
    deep_layer: int = DEEP
    deep_share: float = 1 / 5
    d_c: float = 8.0
    tau: float = 0.6
    semantics: str = "paper"
    saliency: str = "key_norm"
    key_source: str | None = None
    heads: str | None = None
    merge: str | None = None
    quota: str | None = None
    positions: str | None = None
    features: str | None = None
    stage1_power: float | None = None
    merged_share: float | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (value is None and name in DEFAULTS["paper"]):
                raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
        if self.retain is not None and self.retention is not None:
            raise ValueError("retain, retention: expected one of them, got both")
        if self.retain is self.retention is None and None in (self.stage1_ratio, self.stage2_ratio):
            raise ValueError("ViTCoP: expected retain, retention, or stage1_ratio and stage2_ratio, got none of them")
        if self.retain is not None and (isinstance(self.retain, bool) or self.retain < 1):
            raise ValueError(f"retain: expected a number of tokens, at least 1, got {self.retain!r}")
        if self.retention is not None and not 0 < self.retention <= 1:
            raise ValueError(f"retention: expected a share in (0, 1], got {self.retention!r}")
        if self.stage1_power is not None and not 0 <= self.stage1_power <= 1:
            raise ValueError(f"stage1_power: expected a number in [0, 1], got {self.stage1_power!r}")
        for name in ("center_ratio", "merged_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: expected a share in (0, 1], got {value!r}")
        for one, other in (("stage1_ratio", "stage1_power"), ("center_ratio", "merged_share")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one}, {other}: expected one of them, got both")

    @classmethod
    def tuned(cls, **options: Any) -> "ViTCoP":
        """The options that kept most of vitcop-tiny's accuracy, from a third of the tokens down to an eighteenth
        (studies/results/quality.md): no Stage III, less pruning in Stage I, more merging in Stage II. Not tested on
        real checkpoints.

        Args: those of ViTCoP; what is given wins.
        """
        preset: dict[str, Any] = {"deep_share": 1.0}
        if options.get("stage1_ratio") is None:
            preset["stage1_power"] = 0.4
        if options.get("center_ratio") is None:
            preset["merged_share"] = 0.8
        return cls(**preset | options)

    def option(self, name: str) -> str:
        """An option's value, after `semantics` has filled in for None."""
        value = getattr(self, name)
        return DEFAULTS[self.semantics][name] if value is None else value

    def layers(self, num_layers: int) -> tuple[int, int]:
        """(l_s, l_d) in a decoder of `num_layers` layers."""
        scaled = budget.default_layers(num_layers)
        given = self.shallow_layer, self.deep_layer
        shallow, deep = (s if isinstance(g, _DefaultLayer) else g for s, g in zip(scaled, given, strict=True))
        return shallow, deep

    def schedule(self, num_layers: int, total: int) -> budget.Schedule:
        """The ratios for samples of `total` visual tokens. Raises ValueError where there are none."""
        shallow, deep = self.layers(num_layers)
        retention = self._retention(total)
        return budget.schedule_for(
            0.5 if retention is None else retention,  # not looked at when the ratios are given
            num_layers=num_layers, shallow_layer=shallow, deep_layer=deep, stage1_ratio=self.stage1_ratio,
            stage2_ratio=self.stage2_ratio, stage3_ratio=self.stage3_ratio, deep_share=self.deep_share,
            stage1_power=self.stage1_power,
        )  # fmt: skip

    def counts(self, num_layers: int, total: int) -> tuple[int, int, int]:
        """Visual tokens after each stage for a sample that has `total` of them."""
        if self.retain is not None and total <= self.retain and self.stage2_ratio is None:
            return total, total, total
        try:
            return self._pruned_counts(num_layers, total)
        except ValueError:
            if self.retain is None or not self._prunes_larger(num_layers, total):
                raise
        return total, total, total

    def _prunes_larger(self, num_layers: int, total: int) -> bool:
        """Whether larger samples can be pruned to `retain`, so that this one is too small for it."""
        for step in range(1, 64):
            with contextlib.suppress(ValueError):
                self._pruned_counts(num_layers, math.ceil(total * 1.08**step))
                return True
        return False

    def _pruned_counts(self, num_layers: int, total: int) -> tuple[int, int, int]:
        schedule, retention = self.schedule(num_layers, total), self._retention(total)
        if self.semantics == "paper" or retention == 1:
            return schedule.counts(total)
        if retention is not None and self.stage2_ratio is self.stage3_ratio is None and self.deep_share == 1 / 5:
            return schedule.released_counts(total, retention)
        first = max(1, int(total * schedule.stage1_ratio))
        second = max(1, round(schedule.stage2_ratio / schedule.stage1_ratio * first))
        return first, second, max(1, round(schedule.stage3_ratio / schedule.stage2_ratio * second))

    def program(self, num_layers: int) -> Program:
        shallow, deep = self.layers(num_layers)
        if self.retain is None:
            self.schedule(num_layers, 1)  # an infeasible budget is said before the first prefill
        notes = []
        if (shallow, deep) != (self.shallow_layer, self.deep_layer):
            notes.append(
                f"layers scaled to a decoder of {num_layers}: shallow_layer {shallow}, deep_layer {deep} "
                f"(the paper's {SHALLOW:d} and {DEEP:d} are for 32)"
            )
        positions: Any = self.option("positions")
        checked: Positions = positions
        # Clusters of the vision tower's keys wait for no decoder layer.
        early = self.saliency != "key_norm_only" and self.option("features") == "clip_key"
        ratio_of = functools.cache(lambda m: budget.default_center_ratio(self.schedule(num_layers, m).retention))
        clusters = functools.partial(self._clusters, ratio_of)
        stages = [
            Stage("stage1", 0, self._stage1),
            Stage("stage2", shallow, functools.partial(self._stage2, clusters), ahead=clusters if early else None),
            Stage("stage3", deep, self._stage3),
        ]
        counts = functools.partial(self.counts, num_layers)
        return Program(stages, counts, checked, notes, functools.partial(kept_whole, self, counts))

    def _retention(self, total: int) -> float | None:
        return self.retention if self.retain is None else min(1.0, self.retain / total)

    def _stage1(self, ctx: Context) -> Choice:
        """Visual saliency: the tokens that [CLS] attends to most."""
        return Choice(ctx.saliency, ctx.budget, largest=True)

    def _clusters(self, ratio_of: Callable[[int], float], ctx: Context) -> tuple[Tensor, int, Tensor | None]:
        alpha = self.center_ratio
        if self.merged_share is not None:
            wanted = max(1, round(self.merged_share * ctx.budget))
            # Rounded so that of alpha * count, rounded up or (released) down, comes `wanted`.
            alpha = min(1.0, math.nextafter(wanted / ctx.count, math.inf if self.semantics == "released" else 0))
        elif alpha is None:
            alpha = ratio_of(ctx.total)
        return self.cluster(ctx, alpha)

    def _stage2(self, clusters: Callable[[Context], tuple[Tensor, int, Tensor | None]], ctx: Context) -> Choice:
        """Collaborative pruning: of each cluster the most salient tokens, and the mean of the rest."""
        scores = self._scores(ctx)
        if self.saliency == "key_norm_only":
            return Choice(scores, ctx.budget)
        labels, num_clusters, centers = clusters(ctx) if ctx.ahead is None else ctx.ahead
        return Choice(
            scores, ctx.budget, labels=labels, num_clusters=num_clusters, quota=self.option("quota"),
            merge=self.option("merge"), centers=centers,
        )  # fmt: skip

    def _stage3(self, ctx: Context) -> Choice:
        """Textual saliency: the tokens of the smallest key norms."""
        return Choice(self._scores(ctx), ctx.budget)

    def _scores(self, ctx: Context) -> Tensor:
        """[G, V], smaller is more salient."""
        if self.saliency == "attention":
            return -ctx.attention(self.option("key_source"))
        return ctx.key_norms(self.option("heads"), self.option("key_source"))

    def cluster(self, ctx: Context, center_ratio: float) -> tuple[Tensor, int, Tensor | None]:
        """Labels `[G, V]` of the visual tokens, their upper bound, and the centres `[G, K]` (only of single images).

        Each segment (image, tile, frame) is clustered on its own.
        """
        features = ctx.features if self.option("features") == "clip_key" else ctx.hidden
        if ctx.num_segments == 1:
            centers = ops.num_centers_for(center_ratio, ctx.count, semantics=self.semantics)
            result = ops.vic_cluster(features, ctx.positions, self.d_c, self.tau, centers, semantics=self.semantics)
            return result[0], centers, result[1]

        longest = min(ctx.count, ctx.max_segment)
        centers = ops.num_centers_for(center_ratio, longest, semantics=self.semantics)

        def wanted(lengths: Tensor) -> Tensor:
            share = lengths.double() * center_ratio
            return share.floor() if self.semantics == "released" else share.ceil()

        labels = cluster_segments(
            features, ctx.positions, ctx.segment, num_segments=ctx.num_segments, longest=longest, ordered=ctx.ordered,
            centers=centers, wanted=wanted, d_c=self.d_c, tau=self.tau, semantics=self.semantics,
        )  # fmt: skip
        return labels, centers * ctx.num_segments, None
