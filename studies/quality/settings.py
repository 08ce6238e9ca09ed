"""What is asked: methods at budgets, ablations, layers, and each choice between the paper and the released code.

Published layers are meant for 32 layers; vitcop-tiny has 12, and every method is moved to the same relative depth.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vitcop import FastV, PyramidDrop, SparseVLM, VisionOnly, VisionZip, ViTCoP
from vitcop.methods import DivPrune, Method, Random, Uniform

from .probes import RANKINGS, Hidden, Original, Ranked

LAYERS = 12
RETENTIONS = {"33.3": 1 / 3, "22.2": 2 / 9, "11.1": 1 / 9, "5.6": 1 / 18}  # in per cent, as results are named
MAIN = "11.1"  # the budget of ablations, as in the paper's Table 4
NAMES = {
    "vitcop": "ViTCoP",
    "fastv": "FastV",
    "sparsevlm": "SparseVLM",
    "pyramiddrop": "PyramidDrop",
    "visionzip": "VisionZip",
    "divprune": "DivPrune",
    "vision_only": "VisionOnly",
}


def depth(published: int) -> int:
    """A layer of 32 at its relative depth, not before the second layer."""
    return max(1, round(published * LAYERS / 32))


SHALLOW, DEEP = depth(2), depth(22)


def vitcop(**options: Any) -> ViTCoP:
    return ViTCoP(**{"shallow_layer": SHALLOW, "deep_layer": DEEP, **options})


METHODS: dict[str, Callable[[float], Method]] = {
    "vitcop": lambda retention: vitcop(retention=retention),
    "fastv": lambda retention: FastV(retention=retention, layer=depth(2)),
    "sparsevlm": lambda retention: SparseVLM(retention=retention, layers=[depth(layer) for layer in (3, 7, 16)]),
    "pyramiddrop": lambda retention: PyramidDrop(retention=retention, layers=[depth(layer) for layer in (2, 10, 20)]),
    "visionzip": lambda retention: VisionZip(retention=retention),
    "divprune": lambda retention: DivPrune(retention=retention),
    "vision_only": lambda retention: VisionOnly(retention=retention),
}
ONE_CUT = ("visionzip", "divprune", "vision_only")
"""Methods of one schedule, all before the decoder: the first one's random choice stands beside each."""


def feasible(method: Method, tokens: int = 196) -> bool:
    """Whether the layers before its first cut leave a method any of its budget."""
    try:
        method.program(LAYERS).counts(tokens)
    except ValueError:
        return False
    return True


def named(method: str, percent: str, original: bool) -> str:
    """A method at a budget, with published position ids or with those of the unpruned prompt; FastV's are the same."""
    return f"original-{method}-{percent}" if original and method != "fastv" else f"{method}-{percent}"


def published() -> Iterator[tuple[str, Method | None]]:
    """The methods with the position ids that they publish."""
    for name, make in METHODS.items():
        if name != "fastv":
            yield named(name, MAIN, False), make(RETENTIONS[MAIN])
    yield f"vitcop-{MAIN}-random", Random(schedule_of=METHODS["vitcop"](RETENTIONS[MAIN]))


def original() -> Iterator[tuple[str, Method | None]]:
    """The same with original position ids, so that only the choice of tokens differs, and beside each method a random
    choice at its own schedule."""
    yield "unpruned", None
    for percent, retention in RETENTIONS.items():
        for name, make in METHODS.items():
            if not feasible(make(retention)):
                continue
            method = Original(make(retention))
            yield named(name, percent, True), method if name != "fastv" else make(retention)
            if name in ONE_CUT[1:]:
                continue
            yield f"{named(name, percent, True)}-random", Original(Random(schedule_of=make(retention)))
            if name == "vitcop":
                yield f"{named(name, percent, True)}-uniform", Original(Uniform(schedule_of=make(retention)))


def ablations() -> Iterator[tuple[str, Method | None]]:
    """Table 4: the same layers, average and (original) position ids for all."""
    base: dict[str, Any] = {"retention": RETENTIONS[MAIN], "positions": "original"}
    yield f"ablation-{MAIN}-attention", vitcop(**base, saliency="attention")
    yield f"ablation-{MAIN}-key_norm_only", vitcop(**base, saliency="key_norm_only")
    yield f"ablation-{MAIN}-no_stage1", vitcop(**base, stage1_ratio=1.0)
    yield f"ablation-{MAIN}-no_stage3", vitcop(**base, deep_share=1.0)


def layers() -> Iterator[tuple[str, Method | None]]:
    """Table 7: the stages elsewhere, the average the same, original position ids."""
    for shallow in (1, 2, 3):
        for deep in (4, 6, 8, 10):
            places = {"shallow_layer": shallow, "deep_layer": deep}
            yield f"layers-{MAIN}-{shallow}-{deep}", ViTCoP(retention=RETENTIONS[MAIN], positions="original", **places)


def semantics() -> Iterator[tuple[str, Method | None]]:
    """The released code, and each of its differences from the paper alone."""
    alone = {
        "heads": "mean",
        "key_source": "previous",
        "merge": "anchor_plus_mean",
        "quota": "released",
        "positions": "original",
        "features": "hidden",
    }
    retention = RETENTIONS[MAIN]
    yield f"semantics-{MAIN}-released", vitcop(retention=retention, semantics="released")
    yield f"semantics-{MAIN}-positions_released", vitcop(retention=retention, positions="released")
    for name, value in alone.items():
        yield f"semantics-{MAIN}-{name}_{value}", vitcop(retention=retention, **{name: value})


def hidden() -> Iterator[tuple[str, Method | None]]:
    """Where the model reads the picture."""
    for layer in range(LAYERS):
        yield f"hidden-{layer}", Hidden(layer)


def rankings() -> Iterator[tuple[str, Method | None]]:
    """Figure 2b and 3b: one ranking, one cut."""
    for percent in (20, 10):
        for ranking in RANKINGS:
            layers = (0,) if ranking == "cls" else (SHALLOW,) if ranking != "random" else (0, SHALLOW)
            for layer in layers:
                yield f"ranking-{ranking}-{layer}-{percent}", Ranked(ranking, percent / 100, layer)


OPTIONS: dict[str, tuple[Any, ...]] = {
    "d_c": (2.0, 4.0, 16.0),
    "tau": (0.3, 2.0),
    "center_ratio": (0.06, 0.24, 0.4, 0.7),
    "stage1_ratio": (0.2, 0.4, 0.5),
    "deep_share": (0.4, 1.0),
    "deep_layer": (9, 10),
    "saliency": ("attention",),
    "features": ("hidden",),
    "merge": ("anchor_plus_mean",),
    "shallow_layer": (2, 3),
}
"""What is varied, one at a time, on the validation split."""


TOGETHER: tuple[dict[str, Any], ...] = (
    {"deep_share": 1.0, "center_ratio": 0.24},
    {"deep_share": 1.0, "center_ratio": 0.4},
    {"deep_share": 1.0, "center_ratio": 0.24, "stage1_ratio": 0.4},
    {"deep_share": 1.0, "center_ratio": 0.24, "stage1_ratio": 0.2},
    {"deep_share": 1.0, "saliency": "attention"},
    {"deep_layer": 10, "center_ratio": 0.24, "saliency": "attention"},
)
"""What was best alone, together."""


def tuned() -> Iterator[tuple[str, Method | None]]:
    """What was chosen on the validation split, at every budget."""
    for percent, retention in RETENTIONS.items():
        places = {"shallow_layer": SHALLOW, "deep_layer": DEEP}
        yield f"tuned-{percent}", ViTCoP.tuned(retention=retention, positions="original", **places)


def split() -> Iterator[tuple[str, Method | None]]:
    """VisionOnly's budget between elites and means, and how much Stage I leaves."""
    for percent in ("22.2", MAIN):
        for share in (0.16, 0.3, 0.5, 0.75, 1.0):
            yield f"split-{percent}-{share}", Original(VisionOnly(retention=RETENTIONS[percent], merged_share=share))
        yield f"split-{percent}-all", Original(VisionOnly(retention=RETENTIONS[percent], stage1_ratio=1.0))


def tuning() -> Iterator[tuple[str, Method | None]]:
    base: dict[str, Any] = {"retention": RETENTIONS[MAIN], "positions": "original"}
    yield "unpruned", None
    yield f"original-vitcop-{MAIN}", vitcop(**base)
    for name, values in OPTIONS.items():
        for value in values:
            yield f"tuning-{name}={value}", vitcop(**base, **{name: value})
    for options in TOGETHER:
        name = ",".join(f"{option}={value}" for option, value in options.items())
        yield f"tuning-{name}", vitcop(**base, **options)


def clusters() -> Iterator[tuple[str, Method | None]]:
    """How the number of clusters and Stage I should follow the budget, without Stage III, at every budget."""
    for percent, retention in RETENTIONS.items():
        base: dict[str, Any] = {"retention": retention, "positions": "original", "deep_share": 1.0}
        yield f"clusters-{percent}-constant", vitcop(**base, center_ratio=0.24)
        for share in (0.5, 0.65, 0.8, 1.0):
            yield f"clusters-{percent}-{share}", vitcop(**base, merged_share=share)
        for power in (0.5, 0.45, 0.4):
            for share in (0.65, 0.8):
                options = {"merged_share": share, "stage1_power": power}
                yield f"clusters-{percent}-{share}-{power}", vitcop(**base, **options)


GROUPS: dict[str, Callable[[], Iterator[tuple[str, Method | None]]]] = {
    "original": original,
    "tuned": tuned,
    "published": published,
    "ablations": ablations,
    "semantics": semantics,
    "layers": layers,
    "hidden": hidden,
    "rankings": rankings,
}
VALIDATION = {"tuning": tuning, "clusters": clusters, "split": split}
"""What is asked on the validation split, so that nothing is chosen by the answers that are reported."""
FEWER = {"layers": 120, "hidden": 120, "rankings": 120}
"""Pictures that are asked about in groups where no two settings are close."""


def settings_of(split: str, groups: Iterable[str] = ()) -> dict[str, tuple[Method | None, int | None]]:
    """Methods and numbers of pictures (None: all) by the name of their setting, of all groups unless some are named."""
    known = GROUPS if split == "test" else VALIDATION
    return {name: (method, FEWER.get(group)) for group in (list(groups) or known) for name, method in known[group]()}
