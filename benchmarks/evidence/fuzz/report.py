"""The part of docs/evidence.md about fuzzing."""

from typing import Any

from benchmarks.evidence.record import origin

from .implementations import TITLES

BOUNDS = dict(  # as truth_numbers.py and certificate.py have them; u: half an ulp of float32
    key_norms="u (H d / 16 + 8) of the norm; a mean over heads errs by H u of the mean of |K| more",
    key_proj="keys: 4 u max(4, sqrt C) of |x||W|, and the rounding to the dtype; norms: the norm of those errors",
    key_proj_norms="as `key_proj`; rows after an RMSNorm may be rounded to the dtype",
    attention_saliency="a score errs by (d / 16 + 6) u of |q||k|, its weight by the exponential of twice that; "
    "sums by (16 + N / 16) u",
    segment_mean="(8 + n) u of the largest member, and the rounding to the dtype",
    segment_mean_backward="(2 + shares) u of the sum of shares, and the rounding to the dtype",
    vic_cluster="squared distances 2^-15 (none of whole numbers), log rho 2^-20, unit vectors 2^-22; "
    "of the reference 2^-44, 2^-38, 2^-48",
)


def section(found: dict[str, Any]) -> str:
    answers, first, last = found["answers"], *found["seeds"]
    titles = TITLES | found.get("titles", {})
    lines = [
        "## Fuzzing against a float64 truth",
        "",
        f"{found['cases']:,} cases over {len(found['ops'])} ops gave {sum(answers.values()):,} answers of three "
        "independent implementations, each judged by a truth that was written from the specification a second time, "
        f"vectorised in float64: {answers['exact']:,} exact, {answers['certified']:,} certified, "
        f"**{answers['mismatch']:,} mismatches**. Seeds {first} to {last} of every op; "
        "a case is a function of its op and seed (and of numpy's version, whose generator draws it).",
        "",
        "- *Exact*: every index equals the truth's, every number is the truth rounded to its dtype; of a clustering, "
        "every index, with densities and distances inside their bounds.",
        "- *Certified*: numbers inside the bound that the op states; of a clustering or a plan, another answer that "
        "float64 shows to be as good, because what decides is closer than that bound. Exact ties are never excused.",
        "- *Largest error*: of numbers, in units of the stated bound (1 would be the bound itself).",
        "",
        "| op | cases | most tokens | implementation | exact | certified | mismatches | largest error |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for op, of in found["ops"].items():
        for k, (name, counts) in enumerate(of["implementations"].items()):
            head = f"| `{op}` | {of['cases']:,} | {of['most_tokens']:,}" if k == 0 else "| | |"
            error = f"{counts['largest_error']:.2f}" if counts["largest_error"] else ""
            numbers = " | ".join(f"{counts[kind]:,}" for kind in ("exact", "certified", "mismatch"))
            lines.append(f"{head} | {titles[name]} | {numbers} | {error} |")
    lines += ["", "Stated bounds:", ""] + [f"- `{op}`: {bound}." for op, bound in BOUNDS.items()]
    lines += [
        "",
        "The three against each other, on the same cases:",
        "",
        "| op | pair | the same bits | other bits, both right | mismatches |",
        "|---|---|---:|---:|---:|",
    ]
    for op, of in found["ops"].items():
        for k, (pair, counts) in enumerate(of["pairs"].items()):
            pair = " and ".join(titles[name] for name in pair.split(" and "))
            numbers = " | ".join(f"{counts.get(what, 0):,}" for what in ("same bits", "both within bounds", "mismatch"))
            lines.append(f"| {f'`{op}`' if k == 0 else ''} | {pair} | {numbers} |")
    marks = ", ".join(f"{name} {count:,}" for name, count in found["marks"].items())
    lines += ["", "Structures of values, and how often each was drawn:", "", "| structure | cases |", "|---|---:|"]
    lines += [f"| {name} | {count:,} |" for name, count in found["structures"].items()]
    lines += ["", f"What else was drawn, in cases: {marks}.", ""]
    if found["mismatches"]:
        lines += ["Mismatches:", ""]
        lines += [f"- `{m['replay']}`: {m['implementation']}, {m['dtype']}, {m['structure']}: {m['why']}"
                  for m in found["mismatches"][:20]] + [""]  # fmt: skip
    return "\n".join([*lines, origin(found), ""])
