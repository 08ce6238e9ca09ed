"""Budgets and costs against every entry of Tables 4, 7 and 8 of the paper."""

import pytest

from vitcop import budget
from vitcop.budget import schedule_for

HIDDEN, FFN, LAYERS, M = 4096, 11008, 32, 576
TEXT_TOKENS = 57  # with these the paper's counter gives every TFLOPs entry of Tables 4 and 7

TABLE_8 = [
    (1 / 3, (0.5000, 0.4394, 0.0879)),
    (2 / 9, (0.4000, 0.2869, 0.0574)),
    (1 / 9, (0.3000, 0.1343, 0.0269)),
    (1 / 18, (0.2500, 0.0581, 0.0116)),
]


@pytest.mark.parametrize(("retention", "ratios"), TABLE_8)
def test_retention_gives_table_8(retention, ratios):
    schedule = schedule_for(retention)
    # printed with four decimals
    assert (schedule.stage1_ratio, schedule.stage2_ratio, schedule.stage3_ratio) == pytest.approx(ratios, abs=5.1e-5)


@pytest.mark.parametrize("retention", [0.003, 1 / 36, 1 / 18, 0.1, 1 / 9, 0.2, 1 / 3, 0.5, 0.74, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(
    ("layers", "shallow", "deep"), [(32, 2, 22), (40, 2, 28), (32, 1, 22), (32, 3, 27), (6, 2, 4), (12, 4, 8)]
)
def test_the_layer_average_of_a_schedule_is_the_retention_asked_for(retention, layers, shallow, deep):
    schedule = schedule_for(retention, num_layers=layers, shallow_layer=shallow, deep_layer=deep)
    assert schedule.retention == pytest.approx(retention, rel=1e-12)


def test_token_counts_of_llava_15():
    counts = [schedule_for(r).counts(M) for r, _ in TABLE_8]
    assert counts == [(288, 253, 50), (230, 165, 33), (172, 77, 15), (144, 33, 6)]


@pytest.mark.parametrize(
    ("retention", "stage1", "counts"),
    [(0.1111, 0.3, (172, 77, 15)), (0.2222, 0.4, (230, 165, 33)), (0.3333, 0.5, (288, 253, 51))],
)
def test_released_counts_are_the_authors(retention, stage1, counts):
    schedule = schedule_for(retention, stage1_ratio=stage1)
    assert schedule.released_counts(M, retention) == counts


def tflops(schedule, counts):
    inputs = budget.counter_inputs(M, counts, TEXT_TOKENS, schedule)
    return budget.flops_counter(inputs, HIDDEN, FFN) / 1e12


@pytest.mark.parametrize(
    ("name", "options", "printed"),
    [
        ("ViTCoP", {}, 0.82),
        ("w/o Stage I", {"stage1_ratio": 1.0}, 0.91),
        ("w/o Stage III", {"deep_share": 1.0}, 0.81),
        ("l_s = 1, l_d = 22", {"shallow_layer": 1}, 0.82),
        ("l_s = 3, l_d = 22", {"shallow_layer": 3}, 0.82),
        ("l_s = 2, l_d = 17", {"deep_layer": 17}, 0.82),
        ("l_s = 2, l_d = 27", {"deep_layer": 27}, 0.82),
    ],
)
def test_the_counter_gives_tables_4_and_7(name, options, printed):
    schedule = schedule_for(0.1111, **{"stage1_ratio": 0.3, **options})
    # Their code knows no way to leave Stage III out; everything else takes the counts as it rounds them.
    counts = schedule.counts(M) if "deep_share" in options else schedule.released_counts(M, 0.1111)
    assert round(tflops(schedule, counts), 2) == printed


def test_eq_9_gives_the_main_entry_only_with_36_text_tokens():
    def printed(text, **options):
        schedule = schedule_for(1 / 9, **{"stage1_ratio": 0.3, **options})
        return round(budget.flops_eq9(schedule.counts(M), text, HIDDEN, schedule) / 1e12, 2)

    assert printed(36) == 0.82
    assert printed(TEXT_TOKENS) != 0.82
    assert printed(36, stage1_ratio=1.0) != 0.91  # and then it misses the ablation


def test_eq_7_by_hand():
    assert budget.flops_layer(10, 4) == 4 * 100 * 4 + 16 * 10 * 16


def test_eq_10_by_hand():
    schedule = schedule_for(1 / 9)
    expected = 1 - (172 * 1 + 77 * 20 + 15 * 11) / (32 * 576)
    assert budget.cr_int(M, (172, 77, 15), schedule) == pytest.approx(expected, rel=1e-12)


def test_keeping_everything_is_a_schedule_of_ones():
    schedule = schedule_for(1.0)
    assert schedule.counts(M) == (M, M, M)
    assert schedule.retention == 1.0


def test_layer_tokens_and_counter_inputs_differ_at_the_pruning_layers_alone():
    schedule = schedule_for(1 / 9)
    after = budget.layer_tokens(M, (172, 77, 15), schedule)
    before = budget.counter_inputs(M, (172, 77, 15), 0, schedule)
    assert after == [172] * 2 + [77] * 20 + [15] * 10
    assert [i for i, (a, b) in enumerate(zip(after, before, strict=True)) if a != b] == [2, 22]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retention": 0.0}, r"retention: expected a share in \(0, 1\], got 0"),
        ({"retention": 1.5}, r"retention: expected a share in \(0, 1\], got 1.5"),
        ({"retention": 0.1, "stage1_ratio": 2.0}, r"stage1_ratio: expected a share in \(0, 1\], got 2"),
        (
            {"retention": 0.05, "stage1_ratio": 0.9},
            "infeasible budget: .* change the retention, stage1_ratio, or the layers",
        ),
        ({"retention": 0.5, "stage1_ratio": 0.3}, "infeasible budget"),
        ({"retention": 0.1, "deep_share": 0.0}, r"deep_share: expected a share in \(0, 1\], got 0"),
        (
            {"retention": 0.1, "shallow_layer": 22},
            "layers: expected 1 <= shallow_layer < deep_layer < 32 .* got shallow_layer 22",
        ),
        ({"retention": 0.1, "deep_layer": 32}, "layers: expected .* got shallow_layer 2, deep_layer 32"),
    ],
)
def test_infeasible_budgets_say_what_to_change(options, words):
    with pytest.raises(ValueError, match=words):
        schedule_for(**options)


def test_released_counts_refuse_what_cannot_be():
    with pytest.raises(
        ValueError, match=r"infeasible budget: retention 0.02 .* asks Stage II for -?[0-9]+ of 518 tokens"
    ):
        schedule_for(0.5, stage1_ratio=0.9).released_counts(M, 0.02)


@pytest.mark.parametrize(
    ("layers", "expected"), [(32, (2, 22)), (40, (2, 28)), (28, (2, 19)), (12, (2, 8)), (6, (2, 4)), (3, (1, 2))]
)
def test_default_layers_scale_with_depth(layers, expected):
    assert budget.default_layers(layers) == expected
