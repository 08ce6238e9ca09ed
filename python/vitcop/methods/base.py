"""What a method is: stages that look at the visual tokens and answer with a plan. It does not know the model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

import vitcop_kernels as ops

# "renumber": as "compact", at every stage: what is left has contiguous ids, and decoding goes on from that length.
Positions = Literal["compact", "original", "released", "renumber"]


class Context(Protocol):
    """What a stage may look at: G samples with equally many visual tokens. Tensors are computed when asked for."""

    total: int  # visual tokens of a sample before any pruning (m)
    count: int  # visual tokens at this stage (V)
    budget: int  # tokens to come out
    num_segments: int  # segments (images, tiles, frames) of a sample, at most
    max_segment: int  # tokens of a segment that can be left, at most
    ordered: bool  # `segment` ascends in every row

    @property
    def saliency(self) -> Tensor:
        """[G, V] attention that each token receives in the vision tower; larger is more salient."""

    @property
    def features(self) -> Tensor:
        """[G, V, D] keys of the vision tower's layer whose output is used."""

    @property
    def positions(self) -> Tensor:
        """[G, V, 2] (row, col)/grid within the token's segment, in [0, 1)."""

    @property
    def segment(self) -> Tensor:
        """[G, V] image, tile or frame of each token, counted within its sample."""

    @property
    def hidden(self) -> Tensor:
        """[G, V, C] hidden states at the input of the decoder layer."""

    def key_norms(self, heads: str = "l2", source: str = "layer") -> Tensor:
        """[G, V] norms of the keys of this layer (`source="layer"`) or the one before; smaller is more salient."""

    def attention(self, source: str = "layer") -> Tensor:
        """[G, V] attention that the prompt's last token pays each token, summed over heads; larger is more salient."""

    @property
    def ahead(self) -> Any:
        """What the stage's `ahead` gave for these samples; None where it has none."""

    @property
    def embeddings(self) -> Tensor:
        """[G, m, C] the decoder's input for the unpruned visual tokens."""

    @property
    def text_embeddings(self) -> Tensor:
        """[G, W, C] the decoder's input for the text after the last visual token, and for other tokens before it."""

    @property
    def text_valid(self) -> Tensor:
        """[G, W] bool: which of them are that text."""

    def text_attention(self, raters: Tensor, source: str = "layer") -> Tensor:
        """[G, V] attention that these of the W text tokens pay each token, summed over heads and raters.

        Args:
            raters: [G, W] bool, within `text_valid`. Each sees what comes before it, as the decoder does.
        """

    @property
    def tower_states(self) -> Tensor:
        """[G, V, D] what the projector makes the visual tokens of: hidden states of the vision tower; NaN for tokens
        that no patch made (line breaks).

        Raises NotImplementedError where an adapter does not offer them, as `cls_states` and `project` do.
        """

    @property
    def cls_states(self) -> Tensor | None:
        """[G, num_segments, D] the same of the [CLS] tokens of a sample's images; None for towers without, and where
        images are cut into tiles."""

    @property
    def feature_heads(self) -> int:
        """Heads of `features`: D = heads * head width."""

    def project(self, states: Tensor) -> Tensor:
        """[..., D] hidden states of the vision tower -> [..., C] input of the decoder, by the model's projector."""


@dataclass(slots=True)
class Plan:
    """What becomes of the V visual tokens of G samples: S tokens come out, in the order of their anchors.

    Without `perm`, the anchors are kept and the rest is dropped. With it, output token s is made of the tokens
    `perm[offsets[s]:offsets[s+1]]`, as `vitcop_kernels.plan_tokens` says.
    """

    anchors: Tensor  # [G, S] int64, ascending: the token whose place an output token takes
    perm: Tensor | None = None  # [G, V] int64
    offsets: Tensor | None = None  # [G, S+1] int64
    merged: Tensor | None = None  # [G, S] bool
    labels: Tensor | None = None  # [G, V] int64, for the report
    merge: str = "mean"  # or "anchor_plus_mean"
    centers: Tensor | None = None  # [G, K] int64, for the report: which of the V tokens are centres of clusters
    # Outputs in another order than their anchors' (which then need not ascend, only differ): [G, S] int64, ascending,
    # 3v for the place of token v, 3v - 1 just before it and 3v + 1 just behind it; of equals, the first is first.
    places: Tensor | None = None
    # What the outputs are, `[G, S, C]`, where they are not (means of) the decoder's hidden states.
    hidden: Callable[[Context], Tensor] | None = None

    def selection(self) -> "Plan":
        """How the sequence is shortened: this plan, or the choice of anchors, where outputs are moved or replaced."""
        return self if self.places is None and self.hidden is None else Plan(self.anchors.sort(dim=1).values)


@dataclass(slots=True)
class Choice:
    """A plan that follows from scores: the best tokens, or those that Algorithm 3 makes of clusters.

    In place of a `Plan`, so that the choice is made and the sequence shortened in one call.
    """

    scores: Tensor  # [G, V]
    budget: int  # S
    largest: bool = False  # larger is better; with labels smaller is
    labels: Tensor | None = None  # [G, V] clusters: `vitcop_kernels.plan_tokens`; None: `select_tokens`
    num_clusters: int = 0
    quota: str = "exact"
    merge: str = "mean"
    centers: Tensor | None = None  # as in a plan

    def plan(self) -> Plan:
        if self.labels is None:
            return Plan(ops.select_tokens(self.scores, self.budget, largest=self.largest))
        perm, offsets, anchors, merged = ops.plan_tokens(
            self.labels, self.scores, self.num_clusters, self.budget, quota=self.quota
        )
        return Plan(anchors, perm, offsets, merged, self.labels, self.merge, self.centers)


@dataclass(frozen=True)
class Stage:
    """One choice of tokens.

    `ahead`, where given, is work that `select` finds as `ctx.ahead`. It may read the counts, saliency, features,
    positions and segments of the tokens that the stage before has left, and nothing of the decoder: on a GPU it starts
    as soon as that stage has chosen, on a side stream, while the decoder runs the layers in between.
    """

    name: str
    layer: int  # the input of this decoder layer is pruned; 0: before the decoder
    select: Callable[[Context], Plan | Choice]
    ahead: Callable[[Context], Any] | None = None


@dataclass(frozen=True)
class Program:
    """A method resolved for a decoder of known depth."""

    stages: Sequence[Stage]
    counts: Callable[[int], Sequence[int]]  # m -> tokens after each stage; raises ValueError where infeasible
    positions: Positions = "compact"
    notes: list[str] = field(default_factory=list)
    # A sentence for the report where m tokens are all kept although the budget is smaller.
    kept_whole: Callable[[int], str | None] = lambda total: None


class Method(ABC):
    """A way to prune visual tokens. One file; adapters run it without knowing which it is."""

    @abstractmethod
    def program(self, num_layers: int) -> Program:
        """Stages for a decoder with `num_layers` layers, in ascending order of their layers."""
