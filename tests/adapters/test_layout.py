"""Which placeholder takes which row of the vision features, and which segment it belongs to."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from vitcop.layout import group_samples, read_prompt

TEXT, IMAGE, VIDEO, PAD = 1, 8, 9, 0
CPU = torch.device("cpu")


@dataclass
class Tokens:
    """One run of a vision tower; `parts` are the segments of each image."""

    kind: str
    parts: list[list[int]] = field(default_factory=list)

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


@pytest.mark.parametrize(
    ("row", "runs", "message"),
    [
        ([IMAGE, IMAGE, TEXT], [Tokens("image", [[0]]), Tokens("image", [[0, 0]])], "expected 3 .* got 2"),
        ([IMAGE, VIDEO, TEXT], [Tokens("image", [[0, 0]])], "image tokens of sample 0 .* the next one of 2"),
        ([IMAGE, VIDEO, TEXT], [Tokens("image", [[0], [0]])], "video tokens of sample 0 .* got 1, 1 .* no video"),
        ([TEXT, TEXT, IMAGE], [], "expected text after the last visual token"),
    ],
)
def test_what_does_not_match_is_named(row: list[int], runs: list[Tokens], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_samples(read(row), runs, CPU)
