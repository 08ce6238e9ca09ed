"""expand_plan: slot by slot in plain Python, and every kernel against the reference."""

import pytest
import torch
from sequences import ragged, sequence
from support import NATIVE_OPS, assert_batch_invariant, assert_exact, call, layouts, reference
from torch import Tensor

NAMES = ("perm", "offsets", "anchors", "merged", "column", "slots", "removed")


def slot_by_slot(args: tuple[Tensor | None, ...], num_slots: int, out_len: int) -> dict[str, list[int]]:
    slots, anchors, perm, offsets, merged, valid = (None if t is None else t.tolist() for t in args)
    assert slots is not None and anchors is not None
    segments = {}  # slot of the anchor -> slots of the members, whether merged, number in the plan
    for s, a in enumerate(anchors):
        members = [a] if perm is None or offsets is None else perm[offsets[s] : offsets[s + 1]]
        if a >= 0:
            segments[slots[a]] = [slots[v] for v in members], bool(merged and merged[s]), s
    for p in range(num_slots):
        if p not in slots and (valid is None or valid[p]):
            segments[p] = [p], False, -1
    lead = out_len - len(segments)
    out = {"perm": [], "offsets": [0] * lead, "anchors": [-1] * lead, "merged": [False] * lead}
    out |= {"column": [out_len] * num_slots, "slots": [-1] * len(anchors), "removed": [0] * lead}
    for p in sorted(segments):
        members, flag, s = segments[p]
        out["column"][p] = len(out["anchors"])
        if s >= 0:
            out["slots"][s] = len(out["anchors"])
        out["offsets"].append(len(out["perm"]))
        out["anchors"].append(p)
        out["merged"].append(flag)
        out["removed"].append(sum(q in slots and q not in segments for q in range(p)))
        out["perm"] += members
    out["offsets"].append(len(out["perm"]))
    out["removed"].append(sum(q in slots and q not in segments for q in range(num_slots)))
    out["perm"] += [p for p in range(num_slots) if p not in out["perm"]]
    return out


SIZES = [(1, 0, 0), (1, 1, 1), (6, 4, 2), (40, 30, 11), (40, 30, 30), (9, 9, 1), (2, 0, 0), (300, 250, 60)]


@pytest.mark.parametrize("room", [0, 3])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize(("n", "visual", "size"), SIZES)
def test_is_what_it_says_slot_by_slot(n: int, visual: int, size: int, merging: bool, padding: int, room: int) -> None:
    if merging and visual == 0:
        merging = False
    args, shape = sequence(n + padding, visual, size, merging, padding, room)
    want = slot_by_slot(args, **shape)
    for run in (reference, call):
        for name, got in zip(NAMES, run("expand_plan", *args, **shape), strict=True):
            assert got.tolist() == want[name], name
    wide = dict(shape, out_len=min(shape["out_len"] + 2, n + padding))  # padded in front
    want = slot_by_slot(args, **wide)
    for name, got in zip(NAMES, assert_exact("expand_plan", *args, **wide), strict=True):
        assert got.tolist() == want[name], name


def test_samples_of_different_lengths_share_a_call() -> None:
    args, shape = ragged()
    for got in (call("expand_plan", *args, **shape), reference("expand_plan", *args, **shape)):
        for b in range(3):
            want = slot_by_slot(tuple(t[b] for t in args), **shape)
            assert {name: t[b].tolist() for name, t in zip(NAMES, got, strict=True)} == want
    assert_batch_invariant("expand_plan", list(args), samples=3, **shape)


def test_every_layout_gives_the_same() -> None:
    args, shape = ragged()
    want = reference("expand_plan", *args, **shape)
    for index in range(6):
        for name, view in layouts(args[index]):
            got = call("expand_plan", *args[:index], view, *args[index + 1 :], **shape)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (index, name)


def test_the_new_plan_merges_the_sequence_and_leaves_text_alone() -> None:
    args, shape = ragged()
    perm, offsets, anchors, merged = call("expand_plan", *args, **shape)[:4]
    x = torch.randn(3, 30, 5)
    y = call("segment_mean", x, perm, offsets, anchors, merged)
    for b in range(3):
        for s, a in enumerate(anchors[b].tolist()):
            if a < 0:
                assert y[b, s].eq(0).all()
            elif not merged[b, s]:
                assert torch.equal(y[b, s], x[b, a])


BAD = {
    "slots too large": (dict(slots=[0, 1, 9]), "slots"),
    "slots below -1": (dict(slots=[0, -2, 2]), "slots"),
    "slots twice": (dict(slots=[0, 1, 1]), "slots"),
    "anchors too large": (dict(anchors=[0, 3]), "anchors"),
    "anchors of another segment": (dict(anchors=[1, 2]), "anchors"),
    "anchors without a slot": (dict(slots=[-1, 1, 2]), "perm"),
    "perm twice": (dict(perm=[0, 1, 1]), "perm"),
    "perm too large": (dict(perm=[0, 1, 7]), "perm"),
    "offsets descending": (dict(offsets=[0, 2, 1]), "offsets"),
    "offsets too large": (dict(offsets=[0, 1, 4]), "offsets"),
    "out_len": (dict(out_len=3), "out_len"),
}


@pytest.mark.parametrize(("change", "argument"), BAD.values(), ids=BAD.keys())
def test_bad_values_raise_in_the_kernel_and_stay_in_range_in_the_reference(change: dict, argument: str) -> None:
    good = dict(slots=[0, 1, 2], anchors=[0, 2], perm=[0, 1, 2], offsets=[0, 1, 3], merged=[False, True])
    args = {name: torch.tensor(values) for name, values in (good | change).items() if name != "out_len"}
    shape = dict(num_slots=5, out_len=change.get("out_len", 4))
    if "expand_plan" in NATIVE_OPS:
        with pytest.raises(ValueError, match=f"^expand_plan: {argument}: expected .*, got "):
            call("expand_plan", *args.values(), None, **shape)
    perm, offsets, anchors, _, column, slots, removed = reference("expand_plan", *args.values(), None, **shape)
    for t, low, high in (
        (perm, 0, 4),
        (offsets, 0, 5),
        (anchors, -1, 4),
        (column, 0, shape["out_len"]),
        (slots, -1, shape["out_len"]),
        (removed, 0, 5),
    ):
        assert low <= int(t.min()) and int(t.max()) <= high
