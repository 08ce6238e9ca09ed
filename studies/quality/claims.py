"""What the paper says, and what the answers say about it."""

from typing import TYPE_CHECKING

import numpy as np

from .scores import Interval, percent, signed, spread
from .settings import DEEP, MAIN, RETENTIONS, SHALLOW, named

if TYPE_CHECKING:
    from .document import Page

COMPARED = ("fastv", "sparsevlm", "pyramiddrop", "visionzip")  # in the paper
YES, NO, OPEN = "yes", "no", "not settled here"


def rows(page: "Page") -> list[list[str]]:
    """(claim, what was found, whether it holds)"""
    looks = page.results.looks
    found: list[list[str]] = []

    def claim(text: str, figure: str, holds: bool | None) -> None:
        found.append([text, figure, {True: YES, False: NO, None: OPEN}[holds]])

    top = looks["cls_mass"][looks["shares"].index(10)]
    claim("10 % of the tokens hold over 60 % of [CLS] attention (Fig. 2a)", f"{percent(top)} %", top > 0.6)
    kept = page.retained("ranking-cls-0-20")
    claim(
        "the 20 % that [CLS] attends to most keep about 95 % (Fig. 2b)",
        f"{spread(kept)} %",
        None if kept.low < 0.95 < kept.high else kept.value > 0.95,
    )
    correlation = np.array(looks["correlation"])
    negative = int((correlation < 0).sum())
    claim(
        "key norm and attention go against each other (Fig. 3a)",
        f"rank correlation {correlation.min():+.2f} to {correlation.max():+.2f}, negative in {negative} of "
        f"{len(correlation)} layers",
        negative == len(correlation) or (None if negative > len(correlation) / 2 else False),
    )
    for share in (20, 10):
        pair = [f"ranking-{name}-{SHALLOW}-{share}" for name in ("key_norm_smallest", "attention", "random")]
        gap = page.against(pair[0], pair[1])
        claim(
            f"smallest key norms are as good as attention, {share} % kept before layer {SHALLOW} (Fig. 3b)",
            f"{signed(gap)} points; against random {signed(page.against(pair[0], pair[2]))}",
            verdict(gap, ties=True),
        )
    for budget in RETENTIONS:
        others = [named(name, budget, True) for name in COMPARED]
        best = max((name for name in others if name in page.results), key=lambda name: page.retained(name).value)
        gap = page.against(named("vitcop", budget, True), best)
        claim(
            f"ViTCoP retains more than FastV, SparseVLM, PyramidDrop and VisionZip at {budget} % (Table 1)",
            f"{signed(gap)} points against {best.removeprefix('original-').split('-')[0]}",
            verdict(gap),
        )
    for name, what in (
        ("attention", "attention instead of key norms"),
        ("key_norm_only", "key norms without clusters"),
        ("no_stage1", "no Stage I"),
        ("no_stage3", "no Stage III"),
    ):
        gap = page.against(f"ablation-{MAIN}-{name}", named("vitcop", MAIN, True))
        claim(f"{what} is worse, at {MAIN} % (Table 4)", f"{signed(gap)} points", flipped(verdict(gap)))
    prefix = f"layers-{MAIN}-"
    default = f"{prefix}{SHALLOW}-{DEEP}"
    gap = page.against(f"{prefix}{SHALLOW}-{DEEP - 2}", default)
    claim(
        f"Stage III two layers earlier is worse, at {MAIN} % (Table 7)", f"{signed(gap)} points", flipped(verdict(gap))
    )
    return found


def verdict(gap: Interval, ties: bool = False) -> bool | None:
    """Whether a difference is positive; None where the interval does not say. `ties`: not being worse is enough."""
    if gap.excludes_zero:
        return gap.value > 0
    return True if ties else None


def flipped(holds: bool | None) -> bool | None:
    return None if holds is None else not holds
