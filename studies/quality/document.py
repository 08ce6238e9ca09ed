"""studies/results/quality.md, generated from the committed answers."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from studies.markdown import table
from vitcop import VisionOnly

from . import figures, seeds
from .questions import LISTS, TASKS
from .results import KEPT_FROM, Results
from .scores import Answered, Interval, difference, percent, retained, signed, spread
from .settings import LAYERS, MAIN, METHODS, NAMES, ONE_CUT, RETENTIONS, feasible, named, vitcop

ROOT = Path(__file__).parents[2]
PAGE, FIGURES = ROOT / "studies" / "results" / "quality.md", ROOT / "docs" / "quality"


class Page:
    """The tables of one split."""

    def __init__(self, results: Results, tasks: list[int] | None = None) -> None:
        """`tasks` (numbers): those of the study, unless given."""
        self.results, self.tasks = results, results.kept if tasks is None else tasks
        self.names = [TASKS[task] for task in self.tasks]

    def retained(self, name: str) -> Interval:
        return retained(self.results.answered(name), self.full(name), self.tasks)

    def against(self, first: str, second: str) -> Interval:
        pictures = min(self.results.pictures(first), self.results.pictures(second))
        sides = (self.results.answered(name, pictures) for name in (first, second, "unpruned"))
        return difference(*sides, self.tasks)

    def full(self, name: str) -> Answered:
        """The unpruned model on the pictures that a setting was asked about."""
        return self.results.answered("unpruned", self.results.pictures(name))

    def cells(self, name: str) -> list[str]:
        """Accuracy of each task, and in brackets what is left of the unpruned model's, as in the paper's Table 1."""
        accuracy = self.results.answered(name).accuracy()
        full = self.full(name).accuracy()
        return [f"{percent(accuracy[t])} ({percent(accuracy[t] / full[t], 0)})" for t in self.tasks]

    def costs(self, name: str) -> list[str]:
        """Visual tokens of a layer, and the decoder's prefill as a share of the unpruned one's."""
        found = self.results.found[name]
        if "flops" not in found:
            return ["196.0", "100"]
        return [f"{found['tokens']:.1f}", percent(found["flops"] / found["flops_unpruned"], 0)]

    # -- the model -----------------------------------------------------------------------------------------------------

    def model(self) -> str:
        """What it can do, what guessing is worth, and where it looks."""
        whole, blind = (self.results.answered(name) for name in ("unpruned", "hidden-0"))
        rows = []
        for number, task in enumerate(TASKS):
            score = "F1 of the things named" if task in LISTS else "exact"
            kept = "yes" if number in self.tasks else f"no: below {percent(KEPT_FROM, 0)}"
            counts = int(whole.counts[:, number].sum())
            row = [percent(x.accuracy()[number]) for x in (whole, blind)]
            rows.append([task, self.example(task), str(counts), score, *row, kept])
        return table(["task", "example", "questions", "score", "unpruned", "no picture", "in the study"], rows, left=2)

    def example(self, task: str) -> str:
        item = next(item for item in self.results.items if item.task == task)
        return f"{item.question}? *{item.answer}*"

    def depth(self) -> str:
        """Retained without a picture from each layer on, by task."""
        rows = []
        for layer in range(LAYERS):
            name = f"hidden-{layer}"
            if name in self.results:
                rows.append([str(layer), *self.cells(name), spread(self.retained(name))])
        return table(["hidden from layer", *self.names, "retained, % [95 %]"], rows)

    # -- tables --------------------------------------------------------------------------------------------------------

    def main(self) -> str:
        """Table 1: every method at every budget, with original position ids."""
        rows = [["unpruned", *self.cells("unpruned"), "100", *self.costs("unpruned"), "", ""]]
        for budget in RETENTIONS:
            rows.append([f"**retention {budget} %**", *[""] * (len(rows[0]) - 1)])
            rows += [self.row(label, name, *gaps) for label, name, *gaps in self.compared(budget)]
        return table([*self.head(), "minus random", "minus ViTCoP"], rows)

    def compared(self, budget: str) -> Iterator[tuple[str, str, str, str]]:
        """Label, setting, and differences to a random choice at its schedule and to ViTCoP."""
        ours = named("vitcop", budget, True)
        for method, label in NAMES.items():
            name = named(method, budget, True)
            if name in self.results:
                gap = "" if name == ours else signed(self.against(name, ours))
                yield label, name, self.above_random(method, budget), gap
            else:
                assert not feasible(METHODS[method](RETENTIONS[budget]))
                yield label, "", "", ""
        yield "ViTCoP, tuned", f"tuned-{budget}", "", signed(self.against(f"tuned-{budget}", ours))
        for kind in ("uniform", "random"):
            yield f"*{kind}, ViTCoP's schedule*", f"{ours}-{kind}", "", signed(self.against(f"{ours}-{kind}", ours))

    def row(self, label: str, name: str, *gaps: str) -> list[str]:
        if not name:
            return [label, *[""] * len(self.tasks), "n/a", "", "", *gaps]
        return [label, *self.cells(name), spread(self.retained(name)), *self.costs(name), *gaps]

    def head(self, first: str = "method") -> list[str]:
        return [first, *self.names, "retained, % [95 %]", "tokens", "FLOPs, %"]

    def published(self) -> str:
        """The position ids that each method publishes, beside original ones."""
        rows = []
        for method, label in [*NAMES.items(), ("vitcop", "*random, ViTCoP's schedule*")]:
            names = [named(method, MAIN, original) for original in (False, True)]
            if "random" in label:
                names = [f"{name}-random" for name in names]
            gap = "the same" if names[0] == names[1] else signed(self.against(*names))
            rows.append(self.row(label, names[0], gap))
        return table([*self.head(), "minus original ids"], rows)

    def above_random(self, method: str, budget: str) -> str:
        """A method minus a random choice at its schedule."""
        schedule = ONE_CUT[0] if method in ONE_CUT else method
        return signed(self.against(named(method, budget, True), f"{named(schedule, budget, True)}-random"))

    def summary(self) -> str:
        """Table 1 without its tasks."""
        rows = []
        for budget in RETENTIONS:
            for label, name, *gaps in self.compared(budget):
                found = [spread(self.retained(name)), self.costs(name)[0]] if name else ["n/a", ""]
                rows.append([f"{budget} %", label, *found, *gaps])
        return table(["retention", "method", "retained, % [95 %]", "tokens", "minus random", "minus ViTCoP"], rows, 2)

    def variants(self, rows: Iterable[tuple[str, str]], base: str) -> str:
        """Other settings of ViTCoP beside its default."""
        lines = []
        for label, name in rows:
            gap = "" if name == base else signed(self.against(name, base))
            lines.append(self.row(label, name, gap))
        return table([*self.head(""), "minus default"], lines)

    def ablations(self) -> str:
        base = named("vitcop", MAIN, True)
        rows = [
            ("ViTCoP", base),
            ("attention instead of key norms", f"ablation-{MAIN}-attention"),
            ("key norms alone, no clusters", f"ablation-{MAIN}-key_norm_only"),
            ("without Stage I", f"ablation-{MAIN}-no_stage1"),
            ("without Stage III", f"ablation-{MAIN}-no_stage3"),
        ]
        return self.variants(rows, base)

    def semantics(self) -> str:
        base, prefix = f"vitcop-{MAIN}", f"semantics-{MAIN}-"
        names = sorted(name for name in self.results.found if name.startswith(prefix))
        rows = [("paper (default)", base), ("all of the released code", f"{prefix}released")]
        rows += [(f"alone: {name.removeprefix(prefix)}", name) for name in names if name != f"{prefix}released"]
        return self.variants(rows, base)

    def layers(self) -> str:
        """Table 7."""
        prefix = f"layers-{MAIN}-"
        places = sorted(
            tuple(map(int, name.removeprefix(prefix).split("-")))
            for name in self.results.found
            if name.startswith(prefix)
        )
        rows = [(f"l_s = {shallow}, l_d = {deep}", f"{prefix}{shallow}-{deep}") for shallow, deep in places]
        default = vitcop(retention=RETENTIONS[MAIN])
        return self.variants(rows, f"{prefix}{default.shallow_layer}-{default.deep_layer}")

    def tuning(self) -> str:
        """One option at a time, on the split that this page's results are of."""
        names = (name for name in self.results.found if name.startswith("tuning-"))
        base = named("vitcop", MAIN, True)
        rows = [(name.removeprefix("tuning-"), name) for name in sorted(names)]
        return self.variants([("default", base), *rows], base)

    def clusters(self) -> str:
        """ViTCoP without Stage III: a constant share of clusters, then what follows the budget, the best first."""
        rows = []
        for name in sorted(self.by_mean("clusters"), key=lambda name: name != "constant"):
            share, _, power = name.partition("-")
            first = f"retention^{power}" if power else "paper's"
            made = "0.24 of Stage I's tokens" if share == "constant" else f"{share} of Stage II's tokens"
            cells = []
            for budget in RETENTIONS:
                here, base = f"clusters-{budget}-{name}", f"clusters-{budget}-constant"
                cells.append(spread(self.retained(here)) if here == base else signed(self.against(here, base)))
            costs = [self.costs(f"clusters-{budget}-{name}")[1] for budget in RETENTIONS]
            rows.append([made, first, *cells, ", ".join(costs)])
        titles = [f"{budget} %" for budget in RETENTIONS]
        return table(["clusters", "Stage I keeps", *titles, "FLOPs, %"], rows, 2)

    def by_mean(self, group: str) -> list[str]:
        """Variants `group-BUDGET-VARIANT`, by what they retain on average over the budgets, the most first."""
        first = f"{group}-{next(iter(RETENTIONS))}-"
        found = [name.removeprefix(first) for name in self.results.found if name.startswith(first)]
        return sorted(
            found,
            key=lambda variant: -sum(self.retained(f"{group}-{budget}-{variant}").value for budget in RETENTIONS),
        )

    def split(self) -> str:
        """VisionOnly, of which the default stands first, on the split that this page's results are of."""
        rows = []
        for budget in ("22.2", MAIN):
            default = VisionOnly(retention=RETENTIONS[budget])
            base = f"split-{budget}-{default.merged_share}"
            labels = {f"split-{budget}-{share}": f"{budget} %: means {share}" for share in (0.16, 0.3, 0.5, 0.75, 1.0)}
            labels[f"split-{budget}-all"] = f"{budget} %: no Stage I"
            for name, label in sorted(labels.items(), key=lambda item: item[0] != base):
                rows.append(self.row(label, name, "" if name == base else signed(self.against(name, base))))
        return table([*self.head(""), "minus default"], rows)


def blocks() -> dict[str, str]:
    """The generated blocks of studies/results/quality.md."""
    trained = seeds.read()
    results = trained[0]
    page, validation = Page(results), Page(Results.read("validation"))
    compared = [Page(other, seeds.common(trained)) for other in trained]
    one = results.found["unpruned"]
    return {
        "facts": (
            f"{len(results.items)} questions about {results.pictures('unpruned')} pictures of the {results.split} "
            f"split; weights {one['checkpoint_sha256'][:12]}; {one['machine']['processor']}, torch "
            f"{one['machine']['torch']}."
        ),
        "model": page.model(),
        "depth": page.depth(),
        "main": page.main(),
        "published": page.published(),
        "ablations": page.ablations(),
        "semantics": page.semantics(),
        "layers": page.layers(),
        "tuning": validation.tuning(),
        "clusters": validation.clusters(),
        "split": validation.split(),
        "claims": seeds.claimed([Page(other) for other in trained]),
        "seeds": seeds.accuracy(trained),
        "seeds-methods": seeds.retained(compared),
        "seeds-order": seeds.order(compared),
    }


def fill(text: str, blocks: dict[str, str], name: str) -> str:
    """`text` of the file called `name` with its generated blocks written anew."""
    for mark, block in blocks.items():
        pattern = re.compile(rf"(<!-- begin {mark} -->\n).*?(<!-- end {mark} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{name}: no block named {mark}")
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def write() -> None:
    PAGE.write_text(fill(PAGE.read_text(), blocks(), PAGE.name))
    figures.draw(Page(Results.read("test")), FIGURES)
