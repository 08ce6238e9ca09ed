"""prune_sequence: the bits of select_tokens or plan_tokens, expand_plan and compact_sequence, in one call."""

import functools
from typing import Any

import pytest
import torch
from support import (
    FLOATS,
    KERNEL_FLOATS,
    NATIVE_OPS,
    assert_right,
    assert_same_bits,
    call,
    layouts,
    name_of,
    op_of,
    reference,
    tensors,
    threads,
)
from torch import Tensor

MERGES = ("mean", "anchor_plus_mean")
QUOTAS = ("exact", "floor", "released")


def composed(
    namespace: str,
    x: Tensor,
    companions: list[Tensor],
    slots: Tensor,
    scores: Tensor,
    budget: int,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    out_len: int,
    num_clusters: int = 0,
    quota: str = "exact",
    merge: str = "mean",
    largest: bool = False,
) -> list[Tensor]:
    op = functools.partial(op_of, namespace)
    plan: list[Any] = [None, None, None]
    if labels is None:
        anchors = op("select_tokens")(scores, budget, largest=largest)
    else:
        perm, offsets, anchors, merged = op("plan_tokens")(labels, scores, num_clusters, budget, quota=quota)
        plan = [perm, offsets, merged]
    whole = op("expand_plan")(slots, anchors, *plan, valid, num_slots=x.shape[-2], out_len=out_len)
    y, gathered = op("compact_sequence")(x, companions, *whole[:4], merge=merge)
    if labels is None:
        plan = [slots.new_empty((*slots.shape[:-1], 0), dtype=t) for t in (torch.int64, torch.int64, torch.bool)]
    return [y, *gathered, whole[2], whole[5], anchors, *plan]


def stage(
    batch: int = 2, n: int = 40, visual: int = 30, budget: int = 11, width: int = 33, dtype: torch.dtype = torch.float32
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments without labels and padding."""
    slots = torch.stack([torch.randperm(n)[:visual].sort().values for _ in range(batch)])
    companions = [torch.randn(1, n, 6).to(dtype), torch.arange(batch * n).view(batch, n), torch.rand(batch, n) < 0.5]
    x, scores = torch.randn(batch, n, width).to(dtype), torch.randn(batch, visual)
    return [x, companions, slots, scores, budget, None, None], dict(out_len=n - visual + budget)


def with_labels(args: list[Any], clusters: int, low: int = 0) -> list[Any]:
    return [*args[:5], torch.randint(low, clusters, args[2].shape), args[6]]


SIZES = [(1, 1, 0, 0), (1, 1, 1, 1), (2, 6, 4, 2), (1, 40, 30, 11), (3, 40, 30, 30), (2, 9, 9, 1), (1, 300, 250, 60)]


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(("batch", "n", "visual", "budget"), SIZES)
def test_dropping_is_the_three_ops(
    batch: int, n: int, visual: int, budget: int, dtype: torch.dtype, largest: bool
) -> None:
    args, options = stage(batch, n, visual, budget, dtype=dtype)
    options["largest"] = largest
    for namespace, run in (("vitcop", call), ("vitcop_reference", reference)):
        assert_same_bits(tensors(run("prune_sequence", *args, **options)), composed(namespace, *args, **options))
    assert_right("prune_sequence", *args, **options)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("quota", QUOTAS)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(("batch", "n", "visual", "budget"), [(1, 1, 1, 1), (2, 40, 30, 11), (1, 300, 250, 60)])
def test_merging_is_the_three_ops(
    batch: int, n: int, visual: int, budget: int, dtype: torch.dtype, quota: str, merge: str
) -> None:
    args, options = stage(batch, n, visual, budget, width=530 if n < 100 else 33, dtype=dtype)
    for clusters, low in ((1, 0), (7, 0), (7, -1), (budget + 9, 0)):
        args = with_labels(args, clusters, low)
        options |= dict(num_clusters=clusters, quota=quota, merge=merge)
        for namespace, run in (("vitcop", call), ("vitcop_reference", reference)):
            assert_same_bits(tensors(run("prune_sequence", *args, **options)), composed(namespace, *args, **options))
        assert_right("prune_sequence", *args, **options)


@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
@pytest.mark.parametrize("merging", [False, True])
def test_padding_and_infinities_are_those_of_the_three_ops(merging: bool, dtype: torch.dtype) -> None:
    args, options = stage(width=1050, dtype=dtype)
    args[0][0, ::3, 700] = float("inf")
    args[0][1, ::5, 3] = float("nan")
    args[3][:, ::4] = float("nan")
    args[6] = torch.ones(2, 40, dtype=torch.bool)
    args[6][0, :4] = args[6][1, 20] = False
    if merging:
        args, options = with_labels(args, 4), dict(options, num_clusters=4)
    for out_len in (options["out_len"], 40):
        options["out_len"] = out_len
        assert_same_bits(tensors(call("prune_sequence", *args, **options)), composed("vitcop", *args, **options))


def test_slots_in_any_order_and_budgets_beyond_the_tokens() -> None:
    args, options = stage()
    args[2] = args[2].flip(-1)
    assert_same_bits(tensors(call("prune_sequence", *args, **options)), composed("vitcop", *args, **options))
    args, options = with_labels(args, 4), dict(num_clusters=4, out_len=40)
    args[4] = 99
    y = call("prune_sequence", *args, **options)[0]
    assert_same_bits(y, args[0])


@pytest.mark.parametrize("merging", [False, True])
def test_a_sample_alone_is_the_sample_in_a_batch(merging: bool) -> None:
    args, options = stage(3)
    if merging:
        args, options = with_labels(args, 4), dict(options, num_clusters=4)
    args[1] = [t.expand(3, *t.shape[1:]) for t in args[1]]
    whole = tensors(call("prune_sequence", *args, **options))
    for b in range(3):
        alone = [[t[b] for t in a] if isinstance(a, list) else a[b] if isinstance(a, Tensor) else a for a in args]
        assert_same_bits(tensors(call("prune_sequence", *alone, **options)), [t[b] for t in whole])
    with threads(1):
        assert_same_bits(tensors(call("prune_sequence", *args, **options)), whole)


@pytest.mark.parametrize("merging", [False, True])
def test_large_calls_have_the_same_bits_with_one_thread_and_with_two(merging: bool) -> None:
    args, options = stage(2, 700, 640, 200, width=1100)
    if merging:
        args, options = with_labels(args, 30), dict(options, num_clusters=30)
    with threads(2):
        two = tensors(call("prune_sequence", *args, **options))
    with threads(1):
        assert_same_bits(tensors(call("prune_sequence", *args, **options)), two)
    assert_same_bits(two, composed("vitcop", *args, **options))


@pytest.mark.parametrize("merging", [False, True])
def test_every_layout_gives_the_same(merging: bool) -> None:
    args, options = stage()
    args[6] = torch.rand(2, 40) < 0.9
    if merging:
        args, options = with_labels(args, 4), dict(options, num_clusters=4)
    options["out_len"] = 40
    want = tensors(call("prune_sequence", *args, **options))
    for k in (0, 2, 3, 5, 6):
        if args[k] is None:
            continue
        for name, view in layouts(args[k]):
            got = call("prune_sequence", *args[:k], view, *args[k + 1 :], **options)
            assert_same_bits(tensors(got), want, f"argument {k}, {name}")
    for k, t in enumerate(args[1]):
        for name, view in layouts(t):
            changed = [view if i == k else u for i, u in enumerate(args[1])]
            got = call("prune_sequence", args[0], changed, *args[2:], **options)
            assert_same_bits(tensors(got), want, f"companion {k}, {name}")


BAD = {
    "slots too large": (dict(slots=[0, 1, 9]), r"slots: expected slots in \[0, 5\), got 9"),
    "slots of no token": (dict(slots=[0, -1, 2]), r"slots: expected slots in \[0, 5\), got -1"),
    "slots twice": (dict(slots=[0, 1, 1]), "slots: expected every slot once, got 1 twice"),
    "out_len": (dict(out_len=3), "out_len: expected at least the 4 tokens that come out, got 3"),
}


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_values_raise_in_the_kernel_and_stay_in_range_in_the_reference(
    change: dict[str, Any], message: str, merging: bool
) -> None:
    slots, out_len = torch.tensor(change.get("slots", [0, 1, 2])), change.get("out_len", 4)
    labels = torch.tensor([0, 0, 1]) if merging else None
    args = torch.randn(5, 3), [], slots, torch.randn(3), 2, labels
    if "prune_sequence" in NATIVE_OPS:
        with pytest.raises(ValueError, match=f"^prune_sequence: {message}$"):
            call("prune_sequence", *args, num_clusters=2, out_len=out_len)
    _, _, source, new_slots, *_ = reference("prune_sequence", *args, num_clusters=2, out_len=out_len)
    assert int(source.min()) >= -1 and int(source.max()) < 5
    assert int(new_slots.min()) >= -1 and int(new_slots.max()) <= out_len


def test_batches_without_samples_and_sequences_without_visual_tokens() -> None:
    args = torch.randn(0, 9, 3), [], torch.zeros(0, 4).long(), torch.zeros(0, 4), 2
    got = call("prune_sequence", *args, out_len=7)
    assert got[0].shape == (0, 7, 3) and got[2].shape == (0, 7) and got[3].shape == (0, 2)
    x = torch.randn(1, 5, 3)
    none = torch.zeros(1, 0)
    for labels, options in ((None, {}), (none.long(), dict(num_clusters=3))):
        budget = 0 if labels is None else 2
        got = call("prune_sequence", x, [], none.long(), none, budget, labels, out_len=5, **options)
        assert_same_bits(got[0], x)
        assert got[3].shape == got[4].shape == (1, 0)


def test_gradients_are_refused_and_a_call_that_needs_none_has_none() -> None:
    args, options = stage()
    assert not any(t.requires_grad for t in tensors(call("prune_sequence", *args, **options)))
    args[1][0].requires_grad_()
    y, gathered, *_ = op_of("vitcop", "prune_sequence")(*args, **options)
    for t in (y, gathered[0]):
        with pytest.raises(RuntimeError, match=r"^prune_sequence: has no gradient"):
            t.sum().backward(retain_graph=True)
