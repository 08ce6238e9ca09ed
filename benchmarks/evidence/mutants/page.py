"""The part of docs/evidence.md about mutants."""

from collections import Counter
from typing import Any

from .. import record

LAYERS = ("reference", "checks", "C++", "Triton")


def score(fates: Counter[str]) -> str:
    able = fates["killed"] + fates["survived"]
    return f"{fates['killed']} of {able}" if able else "-"


def section(found: dict[str, Any]) -> str:
    table: dict[str, dict[str, Counter[str]]] = {}
    for mutant in found["mutants"]:
        layers = table.setdefault(mutant["op"], {layer: Counter() for layer in LAYERS})
        layers[mutant["layer"]][mutant["fate"]] += 1
    sums = {layer: sum((row[layer] for row in table.values()), Counter()) for layer in LAYERS}
    lines = [
        f"| {op} | " + " | ".join(score(row[layer]) for layer in LAYERS) + " |" for op, row in sorted(table.items())
    ]
    lines.append("| all | " + " | ".join(score(sums[layer]) for layer in LAYERS) + " |")
    alive = [m for m in found["mutants"] if m["fate"] == "survived"]
    same = [m for m in found["mutants"] if m["fate"] == "equivalent"]
    sizes = ", ".join(f"{count:,} in {layer}" for layer, count in found["population"].items())
    text = f"""## Do the tests notice bugs?

Bugs are planted one at a time and an op's own tests are run: killed of those that a test can tell from the right code.
References and argument checks are mutated through the syntax tree, kernels by hand-written bugs ({sizes}; of those in
Python a sample, seed {found["seed"]}).

| op | {" | ".join(LAYERS)} |
|---|{"---|" * len(LAYERS)}
""" + "\n".join(lines)
    late = sum(m.get("first") == "survived" and m["fate"] == "killed" for m in found["mutants"])
    text += (
        f"\n\n{len(found['mutants'])} of {found['chosen']} chosen were planted; {late} of the killed survived at first,"
    )
    text += " and were killed by tests written for them."
    if alive:
        text += "\n\nNot noticed: " + "; ".join(f"{m['op']} ({m['layer']}), {m['what']}" for m in alive) + "."
    if same:
        text += "\n\nEquivalent: " + "; ".join(f"{m['op']}, {m['what']} ({m['by']})" for m in same) + "."
    return text + f"\n\n{record.origin(found)}\n"
