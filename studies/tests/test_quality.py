"""The quality study: its scores, its intervals, its settings, and that its page says what the answers say."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from studies.quality import document, scores, seeds, settings
from studies.quality.questions import TASKS, Item, ask, by_picture, score
from studies.quality.results import KEPT_FROM, Results
from studies.quality.run import Study, batches, describe
from studies.quality.scores import Answered
from vitcop import VisionOnly, ViTCoP
from vitcop.loading import TINY
from vitcop.methods import Method

DEPTHS: dict[str, Any] = {"shallow_layer": settings.SHALLOW, "deep_layer": settings.DEEP}
ALL = {name: method for name, (method, _) in settings.settings_of("test").items()}


@pytest.fixture(scope="module")
def results() -> Results:
    return Results.read("test")


@pytest.fixture(scope="module")
def study() -> Study:
    return Study("validation", TINY, pictures=6, batch_size=5)


@pytest.mark.parametrize(
    ("task", "given", "right", "worth"),
    [
        ("at", "red 7", "red 7", 1),
        ("at", "7 red", "red 7", 0),
        ("at", "red 7 blue 1", "red 7", 0),
        ("count", "", "two", 0),
        ("everything", "red 7 blue ring", "red 7 blue ring", 1),
        ("everything", "blue ring red 7", "red 7 blue ring", 1),  # order is not asked for
        ("everything", "red 7", "red 7 blue ring", 2 / 3),  # precision 1, recall 1/2
        ("everything", "red 7 red 7", "red 7 blue ring", 1 / 2),  # said twice is not two things
        ("everything", "red blue 7 ring", "red 7 blue ring", 0),
        ("row", "nothing", "nothing", 1),
        ("row", "nothing", "red 7", 0),
        ("row", "", "red 7", 0),
    ],
)
def test_worth_of_an_answer(task: str, given: str, right: str, worth: float) -> None:
    assert score(task, given, right) == pytest.approx(worth)


def test_scores_are_summed_by_picture_and_task() -> None:
    items = [Item(0, "at", "", "red 7"), Item(2, "at", "", "blue 1"), Item(2, "count", "", "two")]
    found, counts = by_picture(items, ["red 7", "red 1", "two"])
    at, count = TASKS.index("at"), TASKS.index("count")
    assert found.shape == counts.shape == (3, len(TASKS))
    assert found[:, at].tolist() == [1, 0, 0] and counts[:, at].tolist() == [1, 0, 1]
    assert found[:, count].tolist() == [0, 0, 1] and counts.sum() == 3


def answered(generator: np.random.Generator, chance: float, pictures: int = 300, tasks: int = 2) -> Answered:
    return Answered((generator.random((pictures, tasks)) < chance).astype(float), np.ones((pictures, tasks)))


def test_interval_of_independent_questions_is_the_textbooks() -> None:
    one = answered(np.random.default_rng(0), 0.8, tasks=1)
    found = scores.accuracy(one, [0])
    share = found.value
    # 2000 resamples give the ends of a 95 % interval to about 5 % of its width
    assert found.half == pytest.approx(1.96 * (share * (1 - share) / 300) ** 0.5, rel=0.1)


def test_questions_about_one_picture_count_as_one_draw() -> None:
    same = answered(np.random.default_rng(0), 0.8, tasks=1)
    often = Answered(9 * same.scores, 9 * same.counts)  # nine questions that stand and fall together
    assert scores.accuracy(often, [0]) == scores.accuracy(same, [0])


def test_differences_are_paired() -> None:
    generator = np.random.default_rng(0)
    full, first = answered(generator, 1.0), answered(generator, 0.7)
    second = Answered(first.scores.copy(), first.counts)
    assert scores.difference(first, second, full, [0, 1]) == scores.Interval(0.0, 0.0, 0.0)
    second.scores[:12] = 0  # a little worse, never better: seen though both intervals overlap
    gap = scores.difference(first, second, full, [0, 1])
    assert 0 < gap.low < gap.value and gap.excludes_zero
    assert scores.retained(second, full, [0, 1]).high > scores.retained(first, full, [0, 1]).low


def test_retained_is_the_mean_over_tasks_of_shares() -> None:
    counts = np.array([[4.0, 2.0]] * 2)
    full, half = Answered(np.array([[4.0, 1.0]] * 2), counts), Answered(np.array([[2.0, 1.0]] * 2), counts)
    assert scores.retained(half, full, [0, 1]).value == pytest.approx((0.5 + 1.0) / 2)
    assert scores.retained(half, full, [1]).value == 1.0


def test_every_setting_can_be_run_on_the_decoder_and_has_a_name_of_its_own() -> None:
    names = [name for group in settings.GROUPS.values() for name, _ in group()]
    assert len(names) == len(set(names)) > 90
    for name, method in ALL.items():
        if method is not None:
            program = method.program(settings.LAYERS)
            counts = program.counts(196)
            assert all(a >= b for a, b in zip([196, *counts], counts, strict=False)), name


@pytest.mark.parametrize("budget", settings.RETENTIONS)
def test_methods_of_a_budget_average_the_same_tokens(budget: str, results: Results) -> None:
    wanted = 196 * settings.RETENTIONS[budget]
    names = [*(settings.named(method, budget, True) for method in settings.METHODS), f"tuned-{budget}"]
    compared = [name for name in names if name in results]
    assert len(compared) >= 3
    for name in compared:
        # Whole tokens: at most one is rounded away in each of three stages, SparseVLM's means cost it two more.
        assert wanted - 3 < results.found[name]["tokens"] <= wanted + 0.6, name


def test_batches_ask_every_question_once_and_one_task_at_a_time() -> None:
    items = [Item(picture, task, "", "") for picture in range(7) for task in TASKS[: 1 + picture % 3]]
    found = batches(items, 3)
    assert sorted(row for rows in found for row in rows) == list(range(len(items)))
    assert all(len({items[row].task for row in rows}) == 1 and len(rows) <= 3 for rows in found)


def test_describe_is_python() -> None:
    for name, method in ALL.items():
        text = describe(method)
        if method is not None and not any(probe in text for probe in ("Ranked", "Hidden", "Original")):
            import vitcop.methods

            again = eval(text, vars(vitcop.methods))
            assert again.program(settings.LAYERS).counts(196) == method.program(settings.LAYERS).counts(196), name


def test_vitcop_tiny_answers_and_needs_the_picture(study: Study) -> None:
    def accuracy(method: Method | None) -> float:
        found, counts = by_picture(study.items, study.answers(method)["answers"])
        return found.sum() / counts.sum()

    # Of six pictures; studies/results/quality.md has the rest: 95 %, about 93 % of that, and guessing.
    assert accuracy(None) > 0.85
    assert accuracy(ViTCoP.tuned(retention=1 / 3, shallow_layer=settings.SHALLOW)) > 0.7
    assert accuracy(settings.Hidden(0)) < 0.4


@pytest.mark.parametrize("name", ["unpruned", "vitcop-11.1", "visionzip-11.1", "hidden-3"])
def test_the_prefix_of_the_tower_changes_no_answer(study: Study, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    with_prefix = study.answers(ALL[name])
    monkeypatch.setattr(study, "prefix", lambda pictures: contextlib.nullcontext())
    alone = study.answers(ALL[name])
    assert with_prefix["answers"] == alone["answers"]
    assert with_prefix.get("tokens") == alone.get("tokens")


def test_the_prefix_leaves_the_tower_as_it_was(study: Study) -> None:
    tower = study.answerer.model.model.vision_tower
    before = tower(study.answerer.processor.image_processor(study.images[:1], return_tensors="pt")["pixel_values"])
    with pytest.raises(RuntimeError, match="half-way"), study.prefix([1, 2]):
        raise RuntimeError("half-way")
    after = tower(study.answerer.processor.image_processor(study.images[:1], return_tensors="pt")["pixel_values"])
    assert torch.equal(before.last_hidden_state, after.last_hidden_state)


# -- what is committed ------------------------------------------------------------------------------------------------


def test_committed_answers_are_all_settings_by_the_shipped_weights(results: Results, study: Study) -> None:
    assert set(results.found) == set(ALL)
    assert {found["checkpoint_sha256"] for found in results.found.values()} == {study.sha256}
    for name, method in ALL.items():
        assert results.found[name]["method"] == describe(method)


def test_committed_answers_of_another_seed_are_all_settings_by_one_other_checkpoint(results: Results) -> None:
    shipped = results.found["unpruned"]["checkpoint_sha256"]
    weights = [shipped]
    for other in seeds.read()[1:]:
        assert set(other.found) == set(ALL) and other.items == results.items
        for name, method in ALL.items():
            assert other.found[name]["method"] == describe(method) and other.found[name]["seed"] == other.seed
            assert len(other.found[name]["answers"]) == len(results.found[name]["answers"])
        weights.append(other.found["unpruned"]["checkpoint_sha256"])
    assert len(weights) == len(set(weights)) > 1


def test_at_least_3000_questions_were_asked_under_every_method(results: Results) -> None:
    for name, _ in settings.original():
        assert len(results.found[name]["answers"]) == len(results.items) >= 3000, name


def test_committed_questions_are_those_that_the_script_asks(results: Results) -> None:
    _, items = ask("test", pictures=5)
    assert results.items[: len(items)] == items


def test_the_tuned_preset_is_what_was_best_on_the_validation_split() -> None:
    page = document.Page(Results.read("validation"))
    best = page.by_mean("clusters")[0]
    for budget, retention in settings.RETENTIONS.items():
        chosen = ViTCoP.tuned(retention=retention, positions="original", **DEPTHS)
        assert page.results.found[f"clusters-{budget}-{best}"]["method"] == describe(chosen)


@pytest.mark.parametrize("budget", ["22.2", "11.1"])
def test_the_split_of_vision_only_is_no_worse_than_another_on_the_validation_split(budget: str) -> None:
    page = document.Page(Results.read("validation"))
    default = f"split-{budget}-{VisionOnly(retain=1).merged_share}"
    others = [name for name in page.results.found if name.startswith(f"split-{budget}-") and name != default]
    assert len(others) == 5 and all(page.against(name, default).low <= 0 for name in others)


def test_tasks_of_the_study_are_those_that_the_model_can_do(results: Results) -> None:
    accuracy = results.answered("unpruned").accuracy()
    assert len(results.kept) >= 5
    assert all((accuracy[number] >= KEPT_FROM) == (number in results.kept) for number in range(len(TASKS)))


def test_prose_says_what_the_answers_say() -> None:
    """docs/results.md and studies/results/quality.md, for each training."""

    def against(page: document.Page, first: str, second: str, budget: str) -> scores.Interval:
        names = (f"tuned-{budget}" if m == "tuned" else settings.named(m, budget, True) for m in (first, second))
        return page.against(*names)

    trained = seeds.read()
    for results in trained:
        page = document.Page(results, seeds.common(trained))
        for budget in settings.RETENTIONS:
            assert against(page, "vitcop", "divprune", budget).high < 0
            assert against(page, "tuned", "vitcop", budget).low > 0
        for budget in ("33.3", "22.2"):
            ours = settings.named("vitcop", budget, True)
            assert page.against(ours, f"{ours}-random").value <= 0
            assert against(page, "tuned", "divprune", budget).low > 0
            assert against(page, "vision_only", "divprune", budget).value > 0
        assert against(page, "vitcop", "divprune", "5.6").high < 0 < against(page, "divprune", "tuned", "5.6").low
        assert against(page, "divprune", "vision_only", "5.6").low > 0
        for budget in ("33.3", "22.2", "11.1"):
            better = {m for m in (*settings.METHODS, "tuned") if against(page, m, "vision_only", budget).low > 0}
            assert better == ({"11.1": {"divprune"}, "22.2": {"tuned"}}.get(budget, set()) if results.seed else set())


def test_page_says_what_the_answers_say() -> None:
    text = document.PAGE.read_text()
    assert document.fill(text, document.blocks(), "quality.md") == text


def test_order_of_methods_by_another_seed_is_counted(results: Results) -> None:
    def sentence(found: dict[str, Any]) -> str:
        return seeds.order([document.Page(results), document.Page(Results("test", found, results.items, seed=7))])

    one = r"Of (\d+) pairs .* seed 0 tells apart, seed 7 has (\d+) in the same order, and (\d+) significantly"
    told, same, opposite = map(int, re.match(one, sentence(results.found)).groups())  # type: ignore[union-attr]
    assert told == same > 20 and opposite == 0
    # The best and the worst of one budget change places: with each other, and with all between them.
    pair = {"original-vision_only-11.1": "original-pyramiddrop-11.1"}
    pair |= {worst: best for best, worst in pair.items()}
    swapped = {name: results.found[pair.get(name, name)] for name in results.found}
    again, fewer, opposite = map(int, re.match(one, sentence(swapped)).groups())  # type: ignore[union-attr]
    assert again == told and opposite > 8 and fewer <= told - opposite


def test_a_task_that_one_seed_cannot_do_is_not_compared(results: Results) -> None:
    blind = Results("test", {**results.found, "unpruned": results.found["hidden-4"]}, results.items, seed=7)
    assert seeds.common([results]) == results.kept
    assert [TASKS[task] for task in seeds.common([results, blind])] == ["color", "presence"]
    assert "| kind |" in seeds.accuracy([results, blind]) and blind.seed == 7


def test_a_worse_answer_changes_the_page(results: Results) -> None:
    worse = results.found["vitcop-11.1"]
    worse = worse | {"answers": ["wrong"] * len(worse["answers"])}
    found = Results("test", {**results.found, "vitcop-11.1": worse}, results.items)
    assert document.Page(found).published() != document.Page(results).published()
