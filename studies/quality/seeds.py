"""Whether another training says the same: the answers of weights that other seeds gave, beside the shipped ones'."""

import itertools
from typing import TYPE_CHECKING

from studies.markdown import table

from . import claims
from .questions import TASKS
from .results import Results
from .run import RESULTS
from .scores import percent, spread
from .settings import METHODS, RETENTIONS, named

if TYPE_CHECKING:
    from .document import Page


def read(split: str = "test") -> list[Results]:
    """All seeds whose answers are committed, the shipped weights' first."""
    prefix = f"quality-{split}-seed-"
    seeds = sorted(int(path.name.removeprefix(prefix).removesuffix(".json.xz")) for path in RESULTS.glob(f"{prefix}*"))
    return [Results.read(split, seed) for seed in (0, *seeds)]


def common(found: list[Results]) -> list[int]:
    """Tasks (numbers) that the unpruned model can do whatever its seed."""
    return [task for task in range(len(TASKS)) if all(task in results.kept for results in found)]


def accuracy(found: list[Results]) -> str:
    """What each training can do, unpruned and without a picture."""
    shared = common(found)
    rows = []
    for number, task in enumerate(TASKS):
        cells = [percent(x.answered(name).accuracy()[number]) for name in ("unpruned", "hidden-0") for x in found]
        rows.append([task, *cells, "yes" if number in shared else "no"])
    titles = [f"{title}, seed {x.seed}" for title in ("unpruned", "no picture") for x in found]
    return table(["task", *titles, "in this comparison"], rows)


def retained(pages: list["Page"]) -> str:
    """Every method at every budget, by seed, and how far it is from ViTCoP."""
    rows = []
    for budget in RETENTIONS:
        for compared in zip(*(page.compared(budget) for page in pages), strict=True):
            label, name, *_ = compared[0]
            if name:
                values = [spread(page.retained(name)) for page in pages]
                rows.append([f"{budget} %", label, *values, *(gap for *_, gap in compared)])
    titles = [f"{title}, seed {p.results.seed}" for title in ("retained, % [95 %]", "minus ViTCoP") for p in pages]
    return table(["retention", "method", *titles], rows, 2)


def order(pages: list["Page"]) -> str:
    """How often another seed puts two methods in the order that the shipped weights put them in."""
    first, *others = pages
    lines = []
    for other in others:
        told = same = opposite = 0
        for budget in RETENTIONS:
            names = [*(named(method, budget, True) for method in METHODS), f"tuned-{budget}"]
            names = [name for name in names if name in first.results]
            for a, b in itertools.combinations(names, 2):
                here, there = first.against(a, b), other.against(a, b)
                if here.excludes_zero:
                    told += 1
                    same += here.value * there.value > 0
                    opposite += here.value * there.value < 0 and there.excludes_zero
        lines.append(
            f"Of {told} pairs of methods at one budget that seed {first.results.seed} tells apart, seed "
            f"{other.results.seed} has {same} in the same order, and {opposite} significantly the other way round."
        )
    return "\n".join(lines)


def claimed(pages: list["Page"]) -> str:
    """What the paper says, and what each seed's answers say about it."""
    rows = []
    for found in zip(*(claims.rows(page) for page in pages), strict=True):
        assert len({claim for claim, *_ in found}) == 1
        rows.append([found[0][0], *(cell for _, figure, holds in found for cell in (figure, holds))])
    titles = [title for page in pages for title in (f"seed {page.results.seed}", "holds")]
    return table(["claim of the paper", *titles], rows, left=1 + len(titles))
