"""What each op has to do, and how its Triton launcher goes about it, step by step.

`bytes` and `flops` of a `Work` are what no implementation avoids: every input read once, every output written once,
and the arithmetic of the definition (half of the distance matrix, which is symmetric). `steps` is what our launcher
does: kernels, torch's own small kernels, and grid barriers inside a cooperative launch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .cases import Case, cdiv, next_power_of_2, parts

LONG, SINGLE = 8, 4  # bytes of an index, and of a float32 score
RESIDENT = {32: 4, 64: 2}  # assumed: programs of the one launch that a multiprocessor holds, by tile


class Chip(NamedTuple):
    """What the launchers look at."""

    sms: int
    hip: bool = False


@dataclass(frozen=True)
class Step:
    """A kernel, or what follows a grid barrier in one."""

    name: str
    bytes: float = 0  # through device memory
    flops: dict[str, float] = field(default_factory=dict)  # by unit, see gpus.py
    programs: int = 1
    serial: int = 0  # dependent steps of one program
    l2_bytes: float = 0  # read through L2 by all programs together
    barrier: bool = False  # begins behind a grid barrier, not with a launch


@dataclass(frozen=True)
class Work:
    bytes: float
    flops: dict[str, float]
    steps: tuple[Step, ...]
    exchanges: int = 0  # times that every program needs what all others found, whatever the implementation

    @property
    def launches(self) -> int:
        return sum(not step.barrier for step in self.steps)

    @property
    def barriers(self) -> int:
        return sum(step.barrier for step in self.steps)


def _tile(longest: int, chip: Chip) -> tuple[int, int]:
    """(rows of a tile, tiles of the upper triangle), as vic_cluster's launcher chooses them."""
    tile = 32 if longest <= 384 or chip.hip else 64
    rows = cdiv(longest, tile)
    return tile, rows * (rows + 1) // 2


def one_launch(case: Case, chip: Chip) -> bool:
    """Whether the cooperative launch is estimated to fit; the launcher asks the driver."""
    tile, tiles = _tile(_longest(case), chip)
    return case["B"] * tiles <= chip.sms * RESIDENT[tile]


def _longest(case: Case) -> int:
    return case.dims.get("L", case.dims.get("N", 0))


def vic_cluster(case: Case, chip: Chip) -> Work:
    batch, longest, width, size = case["B"], _longest(case), case["D"], case.itemsize
    total = case.dims.get("T", batch * longest)
    real = total / batch  # tokens of a sample
    unit = "bf16" if size == 2 else "tf32"
    passes = 1 if size == 2 else 3  # TF32 in three passes
    tile, tiles = _tile(longest, chip)
    rows = cdiv(int(real), tile)
    work_tiles = batch * rows * (rows + 1) // 2
    x, pairs = total * width * size, batch * real * (real + 1) / 2
    positions = longest * 2 * SINGLE if "T" not in case.dims else total * 2 * SINGLE
    out = total * (2 * LONG + 2 * SINGLE) + batch * case["K"] * LONG
    gram = {unit: passes * 2.0 * work_tiles * tile * tile * width}
    elements = work_tiles * tile * tile
    loads = work_tiles * 2.0 * tile * width * size
    rank = 4.0 * real * total  # comparisons that order the centres
    jumps = max(1, (longest - 1).bit_length())
    state = 64.0 * total  # norms, densities, best parents
    compulsory = x + positions + out
    need = {unit: 2.0 * pairs * width, "fp32": 8.0 * pairs}

    zero = Step("zero the counters", batch * 128.0)
    per = dict(programs=batch * tiles)
    if one_launch(case, chip):
        steps = (
            zero,
            Step("norms and product", x, gram, l2_bytes=loads + x, **per),
            Step("distances", state, {"fp32": 8.0 * elements}, l2_bytes=state, barrier=True, **per),
            Step("densities", 0, {"fp32": 8.0 * elements, "fp64": 2.0 * elements}, barrier=True, **per),
            Step("parents", positions, {"fp32": 16.0 * elements}, barrier=True, **per),
            Step("centres", out / 2, {"fp32": rank}, barrier=True, **per),
            Step("labels", out / 2, programs=batch, serial=jumps + 6, barrier=True),
        )
    else:
        stored = batch * tiles * tile * tile * 4 <= 64 << 20
        kept = 4.0 * elements if stored else 0.0
        again = {} if stored else gram
        through = 0.0 if stored else loads
        rows8 = batch * cdiv(longest, 8)
        steps = (
            zero,
            Step("norms", x + state, {"fp32": 2.0 * total * width}, rows8),
            Step("anchors that pay", x / 64, programs=batch * cdiv(width, 64), l2_bytes=x / 64),
            Step("anchored rows", x / 64, programs=rows8),
            Step("product", x + kept, gram, l2_bytes=loads, **per),
            Step("densities", kept, {"fp32": 8.0 * elements, "fp64": 2.0 * elements} | again, l2_bytes=through, **per),
            Step("parents", kept + positions, {"fp32": 16.0 * elements} | again, l2_bytes=through, **per),
            Step("centres", out / 2, {"fp32": rank}, rows8),
            Step("labels", out / 2, programs=batch, serial=jumps + 6),
        )
    return Work(compulsory, need, steps, exchanges=2)  # densities need all distances, parents all densities


def attention_saliency(case: Case, chip: Chip) -> Work:
    batch, heads, n, d = case["B"], case["H"], case["N"], case["d"]
    keys, out = batch * heads * (n + 1) * d * case.itemsize, batch * n * SINGLE
    scores = batch * heads * n * SINGLE
    product, soft = 2.0 * batch * heads * n * d, 10.0 * batch * heads * n
    steps = (
        Step("statistics of a tile", keys + scores, {"fp32": product + soft / 2}, batch * heads * cdiv(n, 64)),
        Step(
            "attention summed",
            scores + out,
            {"fp32": soft},
            batch * cdiv(n, 32),
            serial=cdiv(heads, 32) * cdiv(cdiv(n, 64), 16),
        ),
    )
    return Work(keys + out, {"fp32": product + soft / 2}, steps, exchanges=1)


def select_tokens(case: Case, chip: Chip) -> Work:
    batch, n, k = case["B"], case["N"], case["K"]
    total = batch * (n * SINGLE + k * LONG)
    return Work(
        total, {"fp32": 4.0 * batch * n}, (Step("radix select", total, {"fp32": 16.0 * batch * n}, batch, serial=10),)
    )


def key_norms(case: Case, chip: Chip) -> Work:
    keys = case["B"] * case["H"] * case["N"] * case["d"]
    total, flops = keys * case.itemsize + case["B"] * case["N"] * SINGLE, {"fp32": 2.0 * keys}
    return Work(total, flops, (Step("norms", total, flops, case["B"] * cdiv(case["N"], 2)),))


def _projection(case: Case, chip: Chip, want_keys: bool) -> Work:
    batch, n, c, j, size = case["B"], case["N"], case["C"], case["J"], case.itemsize
    unit, passes = ("bf16", 1) if size == 2 else ("tf32", 3)
    x, weight, norms = batch * n * c * size, j * c * size, batch * n * SINGLE
    keys = batch * n * j * size if want_keys else 0
    flops = 2.0 * batch * n * c * j
    tiles = [t for t in ((128, 256), (128, 128), (64, 128), (64, 64)) if not (want_keys and t[1] == 256)]
    if size == 4:
        tiles = [(64, 64)]
    bm, bn = next((t for t in tiles if cdiv(n, t[0]) * cdiv(j, t[1]) >= 96), tiles[-1])
    programs = batch * cdiv(n, bm) * cdiv(j, bn)
    partial = 2.0 * batch * n * cdiv(j, bn) * SINGLE
    steps = [
        Step(
            "projection", x + weight + keys + partial, {unit: passes * 2.0 * programs * bm * bn * c}, programs,
            l2_bytes=programs * (bm + bn) * c * size,
        ),
        Step("norms from tiles", partial + norms, {"fp64": 3.0 * partial / 8}, cdiv(batch * n, 4)),
    ]  # fmt: skip
    if not want_keys:  # an RMSNorm comes first
        steps.insert(0, Step("rms_norm", 2.0 * x, {"fp64": 4.0 * batch * n * c}, batch * n, serial=cdiv(c, 1024)))
    return Work(x + weight + keys + norms, {unit: flops}, tuple(steps))


def plan_tokens(case: Case, chip: Chip) -> Work:
    batch, n, k, s = case["B"], case["N"], case["K"], case["S"]
    total = batch * (n * (LONG + SINGLE) + n * LONG + (s + 1) * LONG + s * LONG + s)
    blocks = cdiv(max(n, k), min(max(next_power_of_2(max(n, k)), 128), 1024))
    steps = (
        Step("count and rank", batch * n * (LONG + 4 * SINGLE), {"fp32": 6.0 * batch * n * n},
             batch * (cdiv(n, 16) + cdiv(k, 16)), serial=cdiv(n, 128)),
        Step("plan", total, {}, batch, serial=30 * blocks),
    )  # fmt: skip
    return Work(total, {}, steps, exchanges=1)


def segment_mean(case: Case, chip: Chip) -> Work:
    batch, n, c, s, size = case["B"], case["N"], case["C"], case["S"], case.itemsize
    total = batch * (n * c * size + s * c * size + n * LONG + (s + 1) * LONG)
    flops = {"fp32": 1.0 * batch * n * c}
    longest = cdiv(n - s, max(1, s // 8)) + 1  # tokens of a merged segment, roughly
    return Work(total, flops, (Step("means", total, flops, batch * s * cdiv(c, 1024), serial=cdiv(longest, 8)),))


def segment_mean_backward(case: Case, chip: Chip) -> Work:
    batch, n, c, s, size = case["B"], case["N"], case["C"], case["S"], case.itemsize
    index = batch * (n + s + 1) * LONG
    total = batch * (n + s) * c * size + index
    flops = {"fp32": 1.0 * batch * n * c}
    steps = (
        Step(  # every program reads all of perm
            "locate", index, programs=batch * cdiv(n, 32), serial=s.bit_length() + cdiv(n, 128),
            l2_bytes=batch * n * LONG * cdiv(n, 32),
        ),
        Step("gradient", total, flops, batch * n * cdiv(c, 1024)),
    )  # fmt: skip
    return Work(total, flops, steps)


def expand_plan(case: Case, chip: Chip) -> Work:
    batch, n, v, s = case["B"], case["n"], case["V"], case["S"]
    out = n - v + s
    total = batch * (LONG * (2 * v + s + s + 1 + 2 * n + 2 * (out + 1) + out + s) + s + out)
    blocks = cdiv(n, min(max(next_power_of_2(n), 128), 1024))
    return Work(total, {}, (Step("count", total, {}, batch, serial=20 * blocks + s.bit_length()),), exchanges=1)


def compact_sequence(case: Case, chip: Chip) -> Work:
    """Hidden states, cos, sin and position ids."""
    batch, n, c, size = case["B"], case["n"], case["C"], case.itemsize
    out = n - case["V"] + case["S"]
    companions = 2.0 * batch * out * (2 * case["d"] * size + LONG)
    total = batch * ((n + out) * c * size + (n + 2 * out + 1) * LONG) + companions
    flops = {"fp32": 1.0 * batch * n * c}
    return Work(total, flops, (Step("means and copies", total, flops, batch * out * (cdiv(c, 1024) + 1), serial=2),))


def gather(case: Case, chip: Chip) -> Work:
    total = 2.0 * case["N"] * case["C"] * case.itemsize + case["N"] * LONG
    return Work(total, {}, (Step("index_select", total, {}, cdiv(case["N"] * case["C"], 1024)),))


OPS: dict[str, Callable[[Case, Chip], Work]] = {
    "vic_cluster": vic_cluster,
    "vic_cluster_varlen": vic_cluster,
    "attention_saliency": attention_saliency,
    "select_tokens": select_tokens,
    "key_norms": key_norms,
    "key_proj_norms": lambda case, chip: _projection(case, chip, want_keys=False),
    "key_proj": lambda case, chip: _projection(case, chip, want_keys=True),
    "plan_tokens": plan_tokens,
    "segment_mean": segment_mean,
    "segment_mean_backward": segment_mean_backward,
    "expand_plan": expand_plan,
    "compact_sequence": compact_sequence,
    "gather": gather,
}


def work_of(case: Case, chip: Chip) -> Work:
    """What an op, or all the ops of a stage together, have to do on such a chip."""
    works = [OPS[part.op](part, chip) for part in parts(case)]
    flops: dict[str, float] = {}
    for work in works:
        _add(flops, work.flops)
    steps: Iterable[Any] = (step for work in works for step in work.steps)
    # One op after another: each needs all of what the one before it found.
    exchanges = sum(work.exchanges for work in works) + len(works) - 1
    return Work(sum(work.bytes for work in works), flops, tuple(steps), exchanges)


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for unit, count in more.items():
        total[unit] = total.get(unit, 0.0) + count
