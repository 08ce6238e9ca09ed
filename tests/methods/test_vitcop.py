"""ViTCoP's settings: presets, budgets, what None stands for, and errors."""

import dataclasses

import pytest

from vitcop import ViTCoP


@pytest.mark.parametrize(
    ("retain", "counts"), [(192, (288, 253, 50)), (128, (230, 165, 33)), (64, (172, 77, 15)), (32, (144, 33, 6))]
)
def test_presets_of_table_8(retain: int, counts: tuple[int, int, int]) -> None:
    method = ViTCoP(retain=retain)
    assert method.counts(32, 576) == counts
    assert ViTCoP(retention=retain / 576).counts(32, 576) == counts
    assert method.schedule(32, 576).retention * 576 == pytest.approx(retain)


@pytest.mark.parametrize(
    ("retention", "stage1", "alpha", "counts"),
    [(0.1111, 0.3, 0.12, (172, 77, 15)), (0.2222, 0.4, 0.15, (230, 165, 33)), (0.3333, 0.5, 0.18, (288, 253, 51))],
)
def test_published_settings_of_the_released_code(
    retention: float, stage1: float, alpha: float, counts: tuple[int, int, int]
) -> None:
    method = ViTCoP(retention=retention, stage1_ratio=stage1, center_ratio=alpha, semantics="released")
    assert method.counts(32, 576) == counts
    assert ViTCoP(retain=round(retention * 576), semantics="released").counts(32, 576) == counts


def test_semantics_fill_in_for_none_and_given_options_win() -> None:
    paper, released = ViTCoP(retain=64), ViTCoP(retain=64, semantics="released", heads="l2", positions="original")
    options = ("key_source", "heads", "merge", "quota", "positions", "features")
    assert [paper.option(o) for o in options] == ["layer", "l2", "mean", "exact", "compact", "clip_key"]
    assert [released.option(o) for o in options] == [
        "previous",
        "l2",
        "anchor_plus_mean",
        "released",
        "original",
        "clip_key",
    ]


def test_tuned_is_a_preset_whose_options_can_be_overridden() -> None:
    tuned = ViTCoP.tuned(retention=1 / 9)
    first, second, third = tuned.counts(32, 576)
    assert first > second == third  # no Stage III
    assert (2 * first + 30 * second) / 32 == pytest.approx(64, abs=1)  # the same average as the paper's 172, 77, 15
    assert first == int(576 * 9**-0.4)
    given = ViTCoP.tuned(retain=64, center_ratio=0.1, stage1_ratio=0.5, deep_share=0.4)
    assert given == ViTCoP(retain=64, center_ratio=0.1, stage1_ratio=0.5, deep_share=0.4)
    assert ViTCoP.tuned(retain=64, merged_share=0.5, stage1_power=0.5) == ViTCoP(
        retain=64, merged_share=0.5, stage1_power=0.5, deep_share=1.0
    )


def test_the_constructor_is_the_specified_one() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(ViTCoP)}
    assert fields == {
        "retain": None,
        "retention": None,
        "stage1_ratio": None,
        "stage2_ratio": None,
        "stage3_ratio": None,
        "center_ratio": None,
        "shallow_layer": 2,
        "deep_layer": 22,
        "deep_share": 1 / 5,
        "d_c": 8.0,
        "tau": 0.6,
        "semantics": "paper",
        "saliency": "key_norm",
        "key_source": None,
        "heads": None,
        "merge": None,
        "quota": None,
        "positions": None,
        "features": None,
        # not in the paper
        "stage1_power": None,
        "merged_share": None,
    }


@pytest.mark.parametrize(("retain", "first"), [(192, 332), (128, 271), (64, 192), (32, 135), (500, 536), (576, 576)])
def test_stage_1_by_a_power_of_the_retention(retain: int, first: int) -> None:
    counts = ViTCoP(retain=retain, stage1_power=0.5, deep_share=1).counts(32, 576)
    assert counts[0] == first >= counts[1] == counts[2]
    assert (2 * counts[0] + 30 * counts[1]) / 32 == pytest.approx(retain, abs=1)


@pytest.mark.parametrize("depth", [3, 4, 8, 12, 28, 32, 80])
def test_the_tuned_preset_is_feasible_in_every_decoder(depth: int) -> None:
    for retain in (1, 5, 11, 32, 64, 192, 500, 575, 576):
        first, second, third = ViTCoP.tuned(retain=retain).counts(depth, 576)
        assert 576 >= first >= second >= third >= 1
        shallow, _ = ViTCoP.tuned(retain=retain).layers(depth)
        average = (shallow * first + (depth - shallow) * second) / depth
        assert average == pytest.approx(retain, abs=1), retain


def test_the_powers_0_and_1_are_no_stage_1_and_nothing_else() -> None:
    assert ViTCoP(retain=64, stage1_power=0, deep_share=1).counts(32, 576)[0] == 576
    assert ViTCoP(retain=64, stage1_power=1, deep_share=1).counts(32, 576) == (64, 64, 64)


@pytest.mark.parametrize(("depth", "layers"), [(32, (2, 22)), (40, (2, 28)), (12, (2, 8)), (8, (2, 6)), (3, (1, 2))])
def test_layers_move_with_the_depth(depth: int, layers: tuple[int, int]) -> None:
    method = ViTCoP(retain=64)
    assert method.layers(depth) == layers
    notes = method.program(depth).notes
    assert (notes == []) == (depth == 32)
    if notes:
        assert f"a decoder of {depth}: shallow_layer {layers[0]}, deep_layer {layers[1]}" in notes[0]


def test_a_layer_given_by_the_caller_does_not_move() -> None:
    assert ViTCoP(retain=64, deep_layer=22).layers(40) == (2, 22)
    assert ViTCoP(retain=64, shallow_layer=3).layers(40) == (3, 28)
    with pytest.raises(ValueError, match="layers: expected 1 <= shallow_layer < deep_layer < 12"):
        ViTCoP(retention=0.2, deep_layer=22).program(12)


def test_stages_are_switched_off_by_their_ratios() -> None:
    assert ViTCoP(retention=1 / 9, stage1_ratio=1).counts(32, 576)[0] == 576
    _, second, third = ViTCoP(retention=1 / 9, deep_share=1).counts(32, 576)
    assert second == third
    assert ViTCoP(stage1_ratio=0.5, stage2_ratio=0.25, stage3_ratio=0.25).counts(32, 576) == (288, 144, 144)
    assert ViTCoP(stage1_ratio=0.5, stage2_ratio=0.25, semantics="released").counts(32, 576) == (288, 144, 29)


def test_retaining_more_than_there_is_keeps_everything() -> None:
    for semantics in ("paper", "released"):
        assert ViTCoP(retain=64, semantics=semantics).counts(32, 16) == (16, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected retain, retention, or stage1_ratio and stage2_ratio, got none"),
        ({"retain": 64, "retention": 0.1}, "expected one of them, got both"),
        ({"retain": 0}, "retain: expected a number of tokens, at least 1, got 0"),
        ({"retention": 1.5}, r"retention: expected a share in \(0, 1\], got 1.5"),
        ({"retain": 64, "semantics": "papers"}, "semantics: expected one of 'paper', 'released', got 'papers'"),
        ({"retain": 64, "heads": "max"}, "heads: expected one of 'l2', 'mean', got 'max'"),
        ({"retain": 64, "saliency": None}, "saliency: expected one of"),
        ({"retain": 64, "center_ratio": 0}, "center_ratio: expected a share"),
        ({"retain": 64, "merged_share": 1.5}, r"merged_share: expected a share in \(0, 1\], got 1.5"),
        ({"retain": 64, "stage1_power": -1}, r"stage1_power: expected a number in \[0, 1\], got -1"),
        ({"retain": 64, "center_ratio": 0.2, "merged_share": 0.5}, "center_ratio, merged_share: expected one of them"),
        ({"retain": 64, "stage1_ratio": 0.2, "stage1_power": 0.5}, "stage1_ratio, stage1_power: expected one of them"),
    ],
)
def test_wrong_settings_name_the_argument(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTCoP(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("semantics", ["paper", "released"])
def test_infeasible_budgets_name_what_to_change(semantics: str) -> None:
    method = ViTCoP(retention=0.05, stage1_ratio=0.9, semantics=semantics)
    with pytest.raises(ValueError, match=r"infeasible budget.*change the retention, stage1_ratio, or the layers"):
        method.program(32)
