"""What may come of a call: an answer that fake, contract and reference agree with, or the documented error."""

import re
from typing import Any

import torch
from malformed import Call
from torch import Tensor

# Depend on values, which a fake does not see.
BY_VALUE = {
    "vic_cluster_varlen": ("cu_seqlens",), "segment_mean": ("perm", "offsets", "anchors"),
    "segment_mean_backward": ("perm", "offsets", "anchors"), "compact_sequence": ("perm", "offsets", "anchors"),
    "expand_plan": ("slots", "perm", "offsets", "anchors", "out_len"),
}  # fmt: skip
# torch's own words for sizes that no memory, or no int64, holds.
OUT_OF_MEMORY = re.compile(
    "can't allocate memory|not enough memory|bad_alloc|max_size|calculation overflowed"
    "|negative dimension -9223372036854775808|cannot be represented as a SymInt|int64_t without overflow"
    "|numel: integer multiplication overflow"
)
EXACT = ("expand_plan", "plan_tokens", "select_tokens")
Outcome = list[Tensor] | Exception


class Violation(AssertionError):
    pass


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in flat(part)]


def outcome(call: Call, namespace: str = "vitcop", device: str = "cpu") -> Outcome:
    def elsewhere(t: Tensor) -> Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)

    args, options = call.bound(elsewhere) if device != "cpu" else call.bound()
    try:
        return flat(getattr(getattr(torch.ops, namespace), call.op)(*args, **options))
    except Exception as error:
        return error


def require(holds: Any, call: Call, why: str, *shown: Any) -> None:
    """`why` with `{}` for each value shown, of tensors their first elements."""
    if not holds:
        values = (v.reshape(-1)[:256].tolist() if isinstance(v, Tensor) else v for v in shown)
        raise Violation(f"{why.format(*values)}\n  {call}")


def beyond_memory(error: Outcome) -> bool:
    return isinstance(error, (RuntimeError, MemoryError)) and bool(OUT_OF_MEMORY.search(str(error)))


def check(call: Call, against_reference: bool = False) -> str:
    """Run the call and judge it. Returns "answer", "refused" or "no memory"; raises Violation."""
    before = [bits(t) for t in call.tensors()]
    got = outcome(call)
    require(all(map(torch.equal, before, [bits(t) for t in call.tensors()])), call, "an input was changed")
    if isinstance(got, Exception):
        return judge_error(call, got)
    devices = {t.device.type for t in call.tensors()}
    require(len(devices) == 1, call, "tensors on two devices were accepted")
    judge_shapes(call, got)
    if devices == {"meta"}:
        return "answer"
    judge_values(call, got)
    if against_reference:
        judge_against_reference(call, got)
    return "answer"


def bits(t: Tensor) -> Tensor:
    """A copy of all bytes behind a tensor."""
    if t.device.type != "cpu":
        return torch.empty(0)
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).clone()


def judge_error(call: Call, got: Exception) -> str:
    if beyond_memory(got):
        return "no memory"
    require(type(got) in (ValueError, TypeError), call, "not a documented error: {!r}", got)
    require(str(got).startswith(f"{call.op}: "), call, "an error that does not name op and argument: {!r}", got)
    if any(t.device.type != "cpu" for t in call.tensors()):
        return "refused"
    fake = outcome(call, device="meta")
    if isinstance(fake, Exception):
        # Of 2^63 the kernel has no more than an int64.
        words = (str(got), str(got).replace("-9223372036854775808", "9223372036854775808"))
        same = type(fake) is type(got) and str(fake) in words
        require(same or beyond_memory(fake), call, "the kernel says {!r}, the fake {!r}", got, fake)
    else:
        argument = str(got).split(": ")[1].split("[")[0]
        require(argument in BY_VALUE.get(call.op, ()), call, "the fake accepts what the kernel refuses: {!r}", got)
    return "refused"


def judge_shapes(call: Call, got: list[Tensor]) -> None:
    fake = outcome(call, device="meta")
    require(not isinstance(fake, Exception), call, "the kernel answers, the fake says {!r}", fake)
    require(len(fake) == len(got), call, "another number of outputs than the fake")
    for k, (a, b) in enumerate(zip(got, fake, strict=True)):
        kind, other = (a.dtype, a.shape), (b.dtype, b.shape)
        require(kind == other, call, "output {} is {}, the fake's {}", k, kind, other)
        steps = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()] for t in (a, b)]
        require(steps[0] == steps[1], call, "output {} has strides {}, the fake's {}", k, a.stride(), b.stride())


def within(call: Call, what: str, t: Tensor, low: int, high: int) -> None:
    if t.numel():
        require(t.min() >= low and t.max() < high, call, "{} outside [{}, {}): {}", what, low, high, t)


def judge_values(call: Call, got: list[Tensor]) -> None:
    """Indices that a caller may use without looking."""
    given = call.given
    if call.op == "select_tokens":
        within(call, "index", got[0], 0, given["scores"].shape[-1])
        require((got[0].diff() > 0).all(), call, "not ascending: {}", got[0])
    elif call.op in ("plan_tokens", "expand_plan"):
        n = given["labels"].shape[-1] if call.op == "plan_tokens" else given["num_slots"]
        perm, offsets, anchors = got[:3]
        if perm.numel():
            require((perm.sort(-1).values == torch.arange(n)).all(), call, "no permutation: {}", perm)
        within(call, "offsets", offsets, 0, n + 1)
        require((offsets.diff() >= 0).all(), call, "offsets descend: {}", offsets)
        within(call, "anchors", anchors, -1, n)
        if call.op == "expand_plan":
            within(call, "column", got[4], 0, given["out_len"] + 1)
            within(call, "slots", got[5], -1, given["out_len"] + 1)
            within(call, "removed", got[6], 0, given["slots"].shape[-1] + 1)
    elif call.op.startswith("vic_cluster"):
        n = given["features"].shape[-2]
        within(call, "labels", got[0], -1, given["num_centers"])
        within(call, "centers", got[1], -1, n)
        within(call, "parent", got[2], -1, n)
        require(not got[3].isnan().any() and (got[3] >= 0).all(), call, "rho: {}", got[3])
        require(not got[4].isnan().any() and (got[4] >= 0).all(), call, "delta: {}", got[4])


def judge_against_reference(call: Call, got: list[Tensor]) -> None:
    if call.op not in EXACT or any(t.requires_grad for t in call.tensors()):
        return
    want = outcome(call, "vitcop_reference")
    if beyond_memory(want):
        return
    require(not isinstance(want, Exception), call, "the kernel answers, the reference says {!r}", want)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        require(torch.equal(a, b), call, "output {}: {}, the reference has {}", k, a, b)
