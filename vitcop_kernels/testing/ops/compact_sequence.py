"""compact_sequence in the table."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import vitcop_kernels

from ..boundary import ANY_DTYPE, Bytes
from ..draw import Draw
from ..inputs import Random, f, i64, normal
from ..op import Arguments, BadCall, Case, Dims, Drawn, Dynamic, Op, Shape, product, share
from ..permutation import Outcome, Shuffle, outcome
from ..values import scores
from ..verdicts import Verdict, mismatch, same_bits, worst
from . import expand_plan, segment_mean
from ._segments import SEGMENTS, SegmentMean, merging, pairs, plan


def make(c: Dims, r: Random) -> Arguments:
    args, kwargs = expand_plan.make(c, r)
    whole = torch.ops.vitcop_reference.expand_plan(*args, **kwargs)
    n = c["tokens"] + c["text"]
    rotation = [r.normal(1, n, c["head_dim"]) for _ in range(2)]
    return (r.normal(c["batch"], n, c["width"]), [*rotation, torch.arange(n)[None]], *whole[:3]), {}


def samples(dtype: torch.dtype) -> Iterator[Arguments]:
    r = normal(dtype)
    yield (r(2, 8, 5), [r(1, 8, 4), torch.arange(16).view(2, 8)], *plan(8, 2)[:3]), {}
    yield (r(8, 5), [r(8, 2, 2)], *plan(8)), dict(merge="anchor_plus_mean")


def dynamic(b: int, n: int) -> Dynamic:
    def call(x: Tensor, index: Tensor, perm: Tensor, offsets: Tensor, anchors: Tensor) -> Any:
        return vitcop_kernels.compact_sequence(x, [index], perm, offsets, anchors)

    args = torch.randn(b, n, 5), torch.arange(n).expand(b, n).contiguous(), *plan(n, b)[:3]
    return call, args, ((0, 1),) * 5


def draw(d: Draw) -> Drawn:
    dtype, structure, n, (x, *plan), options = merging(d, backward=False)
    batch = tuple(x.shape[:-2])
    companions = []
    for _ in range(d.pick([0, 1, 2, 4, 5])):
        lead = d.pick([batch, (1,)]) if batch not in ((), (0,)) else batch
        tail = d.pick([(), (1,), (3,), (2, 3), (0,)])
        kind = d.pick([dtype, torch.float32, torch.int64, torch.int32, torch.bool])
        values = scores(d, (*lead, n, *tail), torch.float32, d.pick(["gaussian", "NaN and Inf"]))
        values = values if kind.is_floating_point else values.nan_to_num(0, 0, 0) * 9
        companions.append(d.laid_out(values.to(kind)))
    return dtype, structure, n, (x, companions, *plan), options


def build(b: Bytes, dtype: torch.dtype) -> dict[str, Any]:
    given = segment_mean.build(b, dtype)
    batch, tokens = tuple(given["x"].shape[:-2]), given["x"].shape[-2]
    companions = []
    for _ in range(b.below(4)):
        lead = b.pick((batch, (1,) * len(batch)))
        tail = b.pick(((), (3,), (2, 2), (0,)))
        kind = b.pick(ANY_DTYPE)
        companions.append(b.laid_out(b.ints(*lead, tokens, *tail, high=100).to(kind)))
    if given["anchors"] is None:
        count = given["offsets"].shape[-1] - 1
        given["anchors"] = b.spoiled(b.ints(*batch, count, high=tokens), tokens)
    return given | dict(companions=companions)


class CompactSequence:
    """segment_mean, and companions that are gathered bit for bit (an empty segment takes the first row)."""

    def __init__(self, case: Case) -> None:
        x, companions, *plan = case.args
        self.mean = SegmentMean(Case(case.op, (x, *plan), case.kwargs, x.dtype))
        anchors = plan[2].clamp(min=0)
        self.rows = []
        for t in companions:
            if anchors.dim() == 1:
                self.rows.append(t[anchors])
                continue
            samples = [t[b if t.shape[0] > 1 else 0][anchors[b]] for b in range(len(anchors))]
            self.rows.append(torch.stack(samples) if samples else t.new_zeros((0, anchors.shape[1], *t.shape[2:])))

    def judge(self, got: Any, implementation: str) -> Verdict:
        y, gathered = (got[0], got[1]) if isinstance(got[1], (list, tuple)) else (got[0], got[1:])
        found = [self.mean.judge(y, implementation)]
        for k, (a, b) in enumerate(zip(gathered, self.rows, strict=True)):
            if not same_bits(a, b):
                found.append(mismatch(f"companion {k} is not its anchors' rows"))
        return worst(found)


def permute(call: Callable[..., Any], s: Shuffle, dtype: torch.dtype) -> Outcome:
    perm, offsets, anchors, merged = pairs(s)
    x, beside, options = s.normal(s.n, 9, dtype=dtype), s.normal(s.n, 3, dtype=dtype), dict(merge="anchor_plus_mean")
    got = call(x[s.order], [beside[s.order]], s.renamed(perm), offsets, s.renamed(anchors), merged, **options)
    return outcome(got, call(x, [beside], perm, offsets, anchors, merged, **options), dtype)


GOOD = dict(
    x=segment_mean.GOOD["x"],
    companions=[f(1, 9, 4), i64(2, 9)],
    perm=segment_mean.GOOD["perm"],
    offsets=segment_mean.GOOD["offsets"],
    anchors=i64(2, 5),
    merged=None,
)
BAD: list[BadCall] = [
    *(case for case in SEGMENTS if not case[2].startswith("anchors: expected a tensor")),
    (
        dict(companions=[i64(2, 9), f(2, 8, 4)]),
        ValueError,
        "companions[1]: expected [2 or 1, 9, ...], got [2, 8, 4]",
    ),
    (dict(companions=[f(3, 9)]), ValueError, "companions[0]: expected [2 or 1, 9, ...], got [3, 9]"),
    (dict(companions=[f(9)]), ValueError, "companions[0]: expected [2 or 1, 9, ...], got [9]"),
    (
        dict(x=f(1, 9, 4), perm=i64(1, 9), offsets=i64(1, 6), anchors=i64(1, 5), companions=[f(2, 9)]),
        ValueError,
        "companions[0]: expected [1, 9, ...], got [2, 9]",
    ),
    (
        dict(companions=[f(2, 9, dtype=torch.complex64)]),
        TypeError,
        "companions[0]: expected a floating dtype, int64, int32 or bool, got complex64",
    ),
]


OP = Op(
    dims={"batch": 1, "tokens": 172, "text": 57, "budget": share("tokens", 0.45), "width": 4096, "head_dim": 128},
    make=make,
    flops=product("batch", "tokens", "width"),
    shapes=(
        Shape({"tokens": 288, "budget": 253}, where="Stage II"),
        Shape({"tokens": 288, "budget": 253}, "bfloat16", where="Stage II"),
    ),
    samples=samples,
    dynamic=dynamic,
    draw=draw,
    build=build,
    good=GOOD,
    bad=tuple(BAD),
    devices=(("anchors", "x"),),
    truth=CompactSequence,
    permute=permute,
    permuted="With `perm` and `anchors` renamed: the same bits.",
    by_value=("perm", "offsets", "anchors"),
    differentiable=True,
    batched=(0, 1, 2, 3, 4, 5),
)
