"""What may come of a call: an answer that fake, contract and reference agree with, or the documented error."""

import re

import torch
from torch import Tensor

from .boundary import Call, Violation, require
from .table import TABLE
from .verdicts import flat

# torch's own words for sizes that no memory, or no int64, holds.
OUT_OF_MEMORY = re.compile(
    "can't allocate memory|not enough memory|bad_alloc|max_size|calculation overflowed"
    "|negative dimension -9223372036854775808|cannot be represented as a SymInt|int64_t without overflow"
    "|numel: integer multiplication overflow"
)
Outcome = list[Tensor] | Exception


def outcome(call: Call, namespace: str = "vitcop", device: str = "cpu") -> Outcome:
    def elsewhere(t: Tensor) -> Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)

    args, options = call.bound(elsewhere) if device != "cpu" else call.bound()
    try:
        return flat(getattr(getattr(torch.ops, namespace), call.op)(*args, **options))
    except Exception as error:
        return error


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
    TABLE[call.op].values(call, got)
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
        require(argument in TABLE[call.op].by_value, call, "the fake accepts what the kernel refuses: {!r}", got)
    return "refused"


def judge_shapes(call: Call, got: list[Tensor]) -> None:
    fake = outcome(call, device="meta")
    if isinstance(fake, Exception):
        raise Violation(f"the kernel answers, the fake says {fake!r}\n  {call}")
    require(len(fake) == len(got), call, "another number of outputs than the fake")
    for k, (a, b) in enumerate(zip(got, fake, strict=True)):
        kind, other = (a.dtype, a.shape), (b.dtype, b.shape)
        require(kind == other, call, "output {} is {}, the fake's {}", k, kind, other)
        steps = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()] for t in (a, b)]
        require(steps[0] == steps[1], call, "output {} has strides {}, the fake's {}", k, a.stride(), b.stride())


def judge_against_reference(call: Call, got: list[Tensor]) -> None:
    if not TABLE[call.op].exact or any(t.requires_grad for t in call.tensors()):
        return
    want = outcome(call, "vitcop_reference")
    if beyond_memory(want):
        return
    if isinstance(want, Exception):
        raise Violation(f"the kernel answers, the reference says {want!r}\n  {call}")
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        require(torch.equal(a, b), call, "output {}: {}, the reference has {}", k, a, b)
