"""Budgets and costs: retention to per-stage ratios and back, Eq. 7-10, and the counter that the paper's tables used.

Symbols as in the paper: `m` visual tokens of a sample, `L` decoder layers, Stage II prunes the input of layer `l_s` and
Stage III that of `l_d` (0-based), `pi1 >= pi2 >= pi3` the shares of `m` that the three stages keep.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

# retention -> pi1: Table 8 (LLaVA-1.5-7B), and full retention at either end of what three stages can average.
STAGE1_AT = ((0.0, 0.0), (1 / 18, 0.25), (1 / 9, 0.3), (2 / 9, 0.4), (1 / 3, 0.5), (3 / 4, 1.0), (1.0, 1.0))
# The share of the tokens that layers 0..l_s-1 may use up when pi1 is ours to choose.
MAX_STAGE1_SHARE = 0.85


@dataclass(frozen=True)
class Schedule:
    """Where the stages stand and what share of a sample's visual tokens each keeps."""

    num_layers: int
    shallow_layer: int
    deep_layer: int
    stage1_ratio: float
    stage2_ratio: float
    stage3_ratio: float

    def __post_init__(self) -> None:
        _check_layers(self.num_layers, self.shallow_layer, self.deep_layer)
        ratios = (self.stage1_ratio, self.stage2_ratio, self.stage3_ratio)
        if not 1 >= ratios[0] >= ratios[1] >= ratios[2] > 0:
            raise ValueError(
                "infeasible budget: expected 1 >= stage1_ratio >= stage2_ratio >= stage3_ratio > 0, got "
                + ", ".join(f"{r:.4g}" for r in ratios)
                + "; change the retention, stage1_ratio, or the layers"
            )

    @property
    def retention(self) -> float:
        """Share of the visual tokens kept, averaged over all layers."""
        layers = self.shallow_layer, self.deep_layer - self.shallow_layer, self.num_layers - self.deep_layer
        ratios = self.stage1_ratio, self.stage2_ratio, self.stage3_ratio
        return sum(n * r for n, r in zip(layers, ratios, strict=True)) / self.num_layers

    def counts(self, m: int) -> tuple[int, int, int]:
        """Tokens after each stage, `floor(m * pi)`, at least one."""
        return tuple(keep(m, r) for r in (self.stage1_ratio, self.stage2_ratio, self.stage3_ratio))  # type: ignore[return-value]

    def released_counts(self, m: int, retention: float) -> tuple[int, int, int]:
        """Tokens after each stage as the authors' code rounds them: `int`, then Python's `round` twice."""
        first = max(1, int(m * self.stage1_ratio))
        deep_weight = self.deep_layer - self.shallow_layer + (self.num_layers - self.deep_layer) / 5
        second = round((self.num_layers * retention / self.stage1_ratio - self.shallow_layer) / deep_weight * first)
        if second < 1 or second > first:
            raise ValueError(
                f"infeasible budget: retention {retention:.4g} with stage1_ratio {self.stage1_ratio:.4g} asks "
                f"Stage II for {second} of {first} tokens; change the retention, stage1_ratio, or the layers"
            )
        return first, second, max(1, round(second / 5))


def keep(m: int, ratio: float) -> int:
    """`floor(m * ratio)`, at least one of `m >= 1` tokens; a product that should be whole is not lost to rounding."""
    return min(m, max(1, math.floor(m * ratio + 1e-9)))


def default_stage1_ratio(retention: float, num_layers: int = 32, shallow_layer: int = 2) -> float:
    """pi1 by Table 8, interpolated linearly in between, and small enough to leave the later layers a share."""
    for (r0, p0), (r1, p1) in itertools.pairwise(STAGE1_AT):
        if retention <= r1:
            ratio = p0 + (p1 - p0) * (retention - r0) / (r1 - r0)
            return _affordable(ratio, retention, num_layers, shallow_layer)
    raise ValueError(f"retention: expected a share in (0, 1], got {retention:g}")


def _affordable(ratio: float, retention: float, num_layers: int, shallow_layer: int) -> float:
    return min(ratio, MAX_STAGE1_SHARE * num_layers * retention / shallow_layer)


def default_center_ratio(retention: float) -> float:
    """alpha of VIC: the authors' .18, .15, .12 at retention 1/3, 2/9, 1/9, and the line through them elsewhere."""
    return 0.09 + 0.27 * retention


def schedule_for(
    retention: float,
    *,
    num_layers: int = 32,
    shallow_layer: int = 2,
    deep_layer: int = 22,
    stage1_ratio: float | None = None,
    stage2_ratio: float | None = None,
    stage3_ratio: float | None = None,
    deep_share: float = 0.2,
    stage1_power: float | None = None,
) -> Schedule:
    """Ratios whose layer average is `retention`, with `pi3 = deep_share * pi2`:

    `pi2 = (L*r - l_s*pi1) / ((l_d - l_s) + (L - l_d)*deep_share)`. With L = 32, l_s = 2, l_d = 22 this is Table 8.
    Where even pi1 = pi2 = 1 average less than `retention`, pi3 grows instead. Given ratios stand, and the others make
    up the rest. `pi1 = r**stage1_power` where that is given instead of pi1, and
    like the default small enough to leave the later layers a share.

    Raises ValueError when no such ratios exist, naming what to change.
    """
    if not 0 < retention <= 1:
        raise ValueError(f"retention: expected a share in (0, 1], got {retention:g}")
    if not 0 < deep_share <= 1:
        raise ValueError(f"deep_share: expected a share in (0, 1], got {deep_share:g}")
    _check_layers(num_layers, shallow_layer, deep_layer)
    for name, ratio in (("stage1_ratio", stage1_ratio), ("stage2_ratio", stage2_ratio), ("stage3_ratio", stage3_ratio)):
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"{name}: expected a share in (0, 1], got {ratio:g}")

    if stage1_ratio is not None:
        pi1 = stage1_ratio
    elif stage1_power is not None:
        pi1 = _affordable(retention**stage1_power, retention, num_layers, shallow_layer)
    else:
        pi1 = default_stage1_ratio(retention, num_layers, shallow_layer)
    middle, deep = deep_layer - shallow_layer, num_layers - deep_layer
    rest = num_layers * retention - shallow_layer * pi1  # layers' worth of tokens left for Stages II and III
    if stage2_ratio is None:
        pi2 = rest / (middle + deep * deep_share) if stage3_ratio is None else (rest - deep * stage3_ratio) / middle
    else:
        pi2 = stage2_ratio
    pi3 = deep_share * pi2 if stage3_ratio is None else stage3_ratio
    if stage1_ratio is stage2_ratio is stage3_ratio is None and pi2 > pi1:
        pi2, pi3 = pi1, min(1.0, (rest - middle * pi1) / deep)
    return Schedule(num_layers, shallow_layer, deep_layer, pi1, pi2, pi3)


def default_layers(num_layers: int) -> tuple[int, int]:
    """(l_s, l_d) for a decoder of any depth: the paper's 2 and 22 of 32 layers, l_d at the same relative depth."""
    if num_layers < 3:
        raise ValueError(f"num_layers: expected at least 3 for three stages, got {num_layers}")
    shallow = min(2, num_layers - 2)
    return shallow, max(shallow + 1, round(num_layers * 22 / 32))


def layer_tokens(m: int, counts: Sequence[int], schedule: Schedule) -> list[int]:
    """Visual tokens that each layer computes on."""
    first, second, third = counts
    shallow, deep = schedule.shallow_layer, schedule.deep_layer
    return [first] * shallow + [second] * (deep - shallow) + [third] * (schedule.num_layers - deep)


def flops_layer(n: float, hidden: int) -> float:
    """Eq. 7: `4 N^2 d + 16 N d^2`, FLOPs of one layer on N tokens of width d."""
    return 4 * n * n * hidden + 16 * n * hidden * hidden


def flops_eq9(counts: Sequence[float], num_text: float, hidden: int, schedule: Schedule) -> float:
    """Eq. 9 as printed, where `l_s` and `l_d` are 1-based: `l_s - 1`, `l_d - l_s` and `L - l_d + 1` layers."""
    layers = _printed_layers(schedule)
    return sum(n * flops_layer(v + num_text, hidden) for n, v in zip(layers, counts, strict=True))


def flops_counter(inputs: Sequence[float], hidden: int, intermediate: int) -> float:
    """The counter behind the paper's tables: per layer `4 n h^2 + 2 n^2 h + 3 n h m_ffn` multiply-accumulates.

    `inputs` holds n for every layer, read before the layer prunes: see `counter_inputs`.
    """
    return sum(4 * n * hidden**2 + 2 * n * n * hidden + 3 * n * hidden * intermediate for n in inputs)


def counter_inputs(m: int, counts: Sequence[int], num_text: float, schedule: Schedule) -> list[float]:
    """Tokens at each layer's input *before* it prunes, which is where the paper's counter reads them."""
    after = layer_tokens(m, counts, schedule)
    return [n + num_text for n in [after[0], *after[:-1]]]


def cr_int(m: int, counts: Sequence[float], schedule: Schedule) -> float:
    """Eq. 10 as printed: the share of visual tokens removed, averaged over layers (`l_s`, `l_d` 1-based)."""
    layers = _printed_layers(schedule)
    return 1 - sum(n * v for n, v in zip(layers, counts, strict=True)) / (schedule.num_layers * m)


def _printed_layers(schedule: Schedule) -> tuple[int, int, int]:
    shallow, deep = schedule.shallow_layer, schedule.deep_layer
    return shallow - 1, deep - shallow, schedule.num_layers - deep + 1


def _check_layers(num_layers: int, shallow_layer: int, deep_layer: int) -> None:
    if not 1 <= shallow_layer < deep_layer < num_layers:
        raise ValueError(
            f"layers: expected 1 <= shallow_layer < deep_layer < {num_layers} (the decoder's layers), "
            f"got shallow_layer {shallow_layer}, deep_layer {deep_layer}"
        )
