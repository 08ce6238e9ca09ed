"""The Triton kernel of expand_plan: equal to the reference in every index."""

import pytest
import torch
from launchers import assert_exact, launch
from sequences import ragged, sequence
from support import layouts


@pytest.mark.parametrize("room", [0, 3])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize(("n", "visual", "size"), [(1, 1, 1), (6, 4, 2), (40, 30, 11), (9, 9, 9), (2, 0, 0)])
def test_equals_the_reference(n: int, visual: int, size: int, merging: bool, padding: int, room: int) -> None:
    args, shape = sequence(n + padding, visual, size, merging and visual > 0, padding, room)
    assert_exact("expand_plan", *args, **shape)
    assert_exact("expand_plan", *args, **dict(shape, out_len=min(shape["out_len"] + 2, n + padding)))


@pytest.mark.parametrize("merging", [False, True])
def test_sequences_longer_than_a_block(merging: bool) -> None:
    args, shape = sequence(2300, 2100, 1040 if merging else 1900, merging, 20, 7)
    assert_exact("expand_plan", *args, **shape)


def test_samples_of_different_lengths_share_a_call_in_every_layout() -> None:
    args, shape = ragged()
    whole = assert_exact("expand_plan", *args, **shape)
    for b in range(3):
        alone = launch("expand_plan", *(t[b] for t in args), **shape)
        assert all(torch.equal(x, y[b]) for x, y in zip(alone, whole, strict=True))
    for views in zip(*(list(layouts(t)) for t in args), strict=True):  # every argument in one layout after the other
        assert_exact("expand_plan", *(view for _, view in views), **shape)


def test_members_before_the_first_segment_are_of_none() -> None:
    args, shape = sequence(40, 30, 11, True, 5)
    offsets = args[3]
    first = int(offsets[1]) + 2  # one segment and two tokens of the next
    results = assert_exact("expand_plan", *args[:3], offsets.clamp(min=first), *args[4:], **shape)
    assert not torch.equal(results[0], assert_exact("expand_plan", *args, **shape)[0])


def test_indices_of_a_wrong_plan_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(3)
    for k in range(16):
        slots, anchors, perm, offsets = (torch.randint(-3, 9, (2, size), generator=generator) for size in (6, 4, 6, 5))
        if k % 2:  # where no memory is: a read there does not go unnoticed
            for t in (slots, anchors, perm, offsets):
                t[torch.rand(t.shape, generator=generator) < 0.3] = 2**44
        merged = torch.rand(2, 4, generator=generator) < 0.5
        results = launch("expand_plan", slots, anchors, perm, offsets, merged, None, num_slots=8, out_len=5)
        ranges = ((0, 7), (0, 8), (-1, 7), (0, 1), (0, 5), (-1, 5), (0, 8))
        for t, (low, high) in zip(results, ranges, strict=True):
            assert low <= int(t.min()) and int(t.max()) <= high
