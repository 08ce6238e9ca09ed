"""The part of docs/evidence.md about determinism."""

from typing import Any

from benchmarks.evidence.fuzz.implementations import TITLES
from benchmarks.evidence.record import origin

from .permutations import STATED


def section(found: dict[str, Any]) -> str:
    def cell(counts: dict[str, int] | None) -> str:
        return "" if counts is None else f"{counts['differ']:,} of {counts['runs']:,}"

    titles = TITLES | found.get("titles", {})
    lines = [
        "## The same bits",
        "",
        "Runs whose bits differed, out of all: of repeated calls; of samples alone, in a batch of one and at several "
        "places of batches of 2 to 7 (of ragged batches: packed alone), against the batch they came in; and on 1 to 8 "
        "threads. Inputs are the fuzzer's, in float32, bfloat16 and float16. float64 goes to the references, whose "
        "matrix products are a library's: those of `key_proj` and `key_proj_norms` may depend on the batch.",
        "",
        "| op | implementation | repeats | batches | threads |",
        "|---|---|---:|---:|---:|",
    ]
    for op, each in found["ops"].items():
        for k, (name, of) in enumerate(each["implementations"].items()):
            head = f"`{op}`" if k == 0 else ""
            cells = " | ".join(cell(of.get(what)) for what in ("repeats", "batches", "threads"))
            lines.append(f"| {head} | {titles[name]} | {cells} |")
    lines += [
        "",
        "What permuting the tokens does, on inputs without ties:",
        "",
        "| op | stated | same bits | same answer | another answer |",
        "|---|---|---:|---:|---:|",
    ]
    for op, each in found["ops"].items():
        counts = each["permuted"]
        numbers = " | ".join(f"{counts.get(what, 0):,}" for what in ("same bits", "same answer", "another answer"))
        lines.append(f"| `{op}` | {STATED[op]} | {numbers} |")
    return "\n".join([*lines, "", origin(found), ""])
