"""Which placeholder takes which row of the vision features, and which segment it belongs to."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from vitcop.engine.layout import group_images, group_samples, read_prompt

TEXT, IMAGE, VIDEO, PAD = 1, 8, 9, 0
CPU = torch.device("cpu")


@dataclass
class Tokens:
    """One run of a vision tower; `parts` are the segments of each image."""

    kind: str
    parts: list[list[int]] = field(default_factory=list)
    are_tiles: bool = False

    @property
    def image_tokens(self) -> list[int]:
        return [len(part) for part in self.parts]

    def segments(self) -> Tensor:
        return torch.tensor([segment for part in self.parts for segment in part], dtype=torch.int64)


def read(*rows: list[int]):  # type: ignore[no-untyped-def]
    ids = torch.tensor(rows)
    return read_prompt(ids, {"image": IMAGE, "video": VIDEO}, ids != PAD)


def test_kinds_are_matched_apart_and_segments_counted_in_the_order_of_the_prompt() -> None:
    prompt = read(
        [TEXT, VIDEO, VIDEO, IMAGE, TEXT, IMAGE, IMAGE, VIDEO, TEXT],
        [PAD, TEXT, IMAGE, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT],
    )
    assert prompt.counts == [6, 1] and prompt.lengths == [9, 8] and prompt.padded and prompt.last_visual == 7
    images = Tokens("image", [[0], [1, 0], [0]])
    videos = Tokens("video", [[0, 1], [0]])
    one, two = group_samples(prompt, [images, videos], CPU)
    assert (one.samples, two.samples, one.total, two.total) == ([1], [0], 1, 6)
    assert one.rows is not None and two.rows is not None and two.rows.tolist() == [0]
    assert two.slots.tolist() == [[1, 2, 3, 5, 6, 7]]
    assert two.flat.tolist() == [[4, 5, 0, 1, 2, 6]]  # the tower saw the images first
    assert two.segment.tolist() == [[0, 1, 2, 4, 3, 5]]  # video, image, image of two interleaved parts, video
    assert (two.num_segments, two.max_segment, two.ordered) == (6, 1, False)
    assert one.flat.tolist() == [[3]] and one.segment.tolist() == [[0]] and one.ordered


def test_segments_of_a_group_have_common_bounds() -> None:
    prompt = read([IMAGE, IMAGE, IMAGE, TEXT], [IMAGE, IMAGE, IMAGE, TEXT])
    (group,) = group_samples(prompt, [Tokens("image", [[0, 0], [0], [0, 1, 2]])], CPU)
    assert group.rows is None and group.samples == [0, 1]
    assert group.segment.tolist() == [[0, 0, 1], [0, 1, 2]] and group.ordered
    assert (group.num_segments, group.max_segment) == (3, 2)


def test_repeated_prompts_share_their_features() -> None:
    rows = [IMAGE, IMAGE, TEXT], [IMAGE, TEXT, TEXT]
    prompt = read(rows[0], rows[0], rows[1], rows[1])
    one, two = group_samples(prompt, [Tokens("image", [[0, 0], [0]])], CPU)
    assert two.samples == [0, 1] and two.flat.tolist() == [[0, 1], [0, 1]]
    assert one.samples == [2, 3] and one.flat.tolist() == [[2], [2]]


def test_images_with_budgets_of_their_own() -> None:
    """Samples are alike where their images are, in order; images where they have as many tokens."""
    rows = [IMAGE, IMAGE, TEXT, IMAGE, TEXT], [IMAGE, TEXT, IMAGE, IMAGE, TEXT], [PAD, PAD, PAD, IMAGE, TEXT]
    prompt, runs = read(*rows), [Tokens("image", [[0, 1], [0], [0], [2, 0], [0]])]
    (single, *_) = group_samples(prompt, runs, CPU)
    assert (single.samples, single.images) == ([2], (1,))
    groups = group_samples(prompt, runs, CPU, "image")
    assert [(g.samples, g.images, g.total) for g in groups] == [([2], (1,), 1), ([1], (1, 2), 3), ([0], (2, 1), 3)]
    one, two = group_images(prompt, runs, CPU, groups)
    assert one.samples == [2, 1, 0] and one.slots.tolist() == [[3], [0], [3]] and one.end.tolist() == [[3], [3], [3]]
    assert one.flat.tolist() == [[6], [3], [2]] and one.num_segments == 1
    assert two.samples == [1, 0] and two.slots.tolist() == [[2, 3], [0, 1]] and two.flat.tolist() == [[4, 5], [0, 1]]
    assert two.segment.tolist() == [[2, 0], [0, 1]] and (two.num_segments, two.ordered) == (3, False)


def test_tiles_are_of_one_image_where_nothing_stands_between_them() -> None:
    prompt = read([IMAGE, IMAGE, IMAGE, TEXT, IMAGE, TEXT])
    tiles = Tokens("image", [[0], [0, 0], [0]])
    assert group_samples(prompt, [tiles], CPU, "image")[0].images == (1, 2, 1)
    tiles.are_tiles = True
    assert group_samples(prompt, [tiles], CPU, "image")[0].images == (3, 1)


def test_images_whose_tokens_take_turns_share_a_budget() -> None:
    prompt = read([IMAGE, VIDEO, IMAGE, TEXT])
    runs = [Tokens("image", [[0, 0]]), Tokens("video", [[0]])]
    assert group_samples(prompt, runs, CPU)[0].total == 3
    with pytest.raises(ValueError, match=r"budget_per: expected 'sample' where .* got 'image' for sample 0"):
        group_samples(prompt, runs, CPU, "image")


@pytest.mark.parametrize(
    ("row", "runs", "message"),
    [
        ([IMAGE, IMAGE, TEXT], [Tokens("image", [[0]]), Tokens("image", [[0, 0]])], "expected 3 .* got 2"),
        ([IMAGE, VIDEO, TEXT], [Tokens("image", [[0, 0]])], "image tokens of sample 0 .* the next one of 2"),
        ([IMAGE, VIDEO, TEXT], [Tokens("image", [[0], [0]])], "video tokens of sample 0 .* got 1, 1 .* no video"),
        ([TEXT, TEXT, IMAGE], [Tokens("image", [[0]])], "expected text after the last visual token"),
    ],
)
def test_what_does_not_match_is_named(row: list[int], runs: list[Tokens], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_samples(read(row), runs, CPU)
