"""Budgets per image: every image or video of a prompt keeps its own share, against the slow reference."""

from typing import Any

import pytest
import slow_methods
import slow_qwen
import tiny_internvl
import torch
from against import assert_as_published
from checks import TOLERANCE, generate
from families import FAMILIES, Family, parameters
from graph_recorder import Recorder
from host_reads import NoHostReads
from slow_llava import Turn, embed
from slow_llava import logits as slow_logits
from tiny_llava import IMAGE, batch, prompt

import vitcop
from vitcop import FastV, PyramidDrop, SparseVLM, VisionZip, ViTCoP
from vitcop.methods import METHODS
from vitcop.methods.replay import Replay
from vitcop.session import Handle

METHOD = ViTCoP(retention=0.3)


def images_of(model: Any, sample: Any) -> list[int]:
    """Visual tokens of each image or video of a prompt, in its order."""
    if "qwen" in model.config.model_type:
        tokens: list[Any] = slow_qwen.embed(model, slow_qwen.Sample(*sample), 0, [])
    else:
        tokens = embed(model, Turn(*sample), 0, 0)
    given = [t.given for t in tokens if t.given >= 0]
    return [given.count(image) for image in sorted(set(given))]


def shares(counts: list[int], kept: list[int]) -> list[int]:
    """How many of some tokens are of each image, of as many tokens."""
    first, found = 0, []
    for count in counts:
        found.append(sum(first <= token < first + count for token in kept))
        first += count
    return found


OPTIONS = {
    "paper": (dict(retention=0.3), "left"),
    "released": (dict(retention=0.3, semantics="released"), "right"),
    "attention, original": (dict(retention=0.4, saliency="attention", positions="original"), "left"),
}


@pytest.mark.feature("several images or videos per prompt")
@pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param(*p.values, "paper", id=f"{p.id}-paper", marks=p.marks) for p in parameters()]
    + [
        pytest.param(*p.values, name, id=f"{p.id}-{name}", marks=p.marks)
        for p in parameters("llava", "llava_next")
        for name in list(OPTIONS)[1:]
    ],
    indirect=["family"],
)
def test_a_padded_batch_equals_the_reference(family: Family, name: str) -> None:
    """Prompts of no, one and several images and videos of different sizes."""
    options, side = OPTIONS[name]
    model, method, prompts = (
        family.model(2),
        family.method(**options),
        [*(family.prompt(n, seed=1) for n in (1, 0, 2)), family.prompts()[-1]],
    )
    inputs = family.batch(prompts, side)
    with vitcop.prune(model, method, budget_per="image") as report, torch.no_grad():
        output = model(**inputs, **family.positions(inputs["attention_mask"]))
    layers = len(model.model.language_model.layers)
    for number, (ids, pixels) in enumerate(prompts):
        images = images_of(model, prompts[number])
        for stage_number, stage in enumerate(report.stages):
            kept = stage.kept[number, : stage.tokens_out[number]].tolist()
            wanted = [method.counts(layers, total)[stage_number] for total in images]
            assert shares(images, kept) == wanted
            # Nothing is merged across images.
            for members in stage.segments(number):
                assert sum(share > 0 for share in shares(images, members)) == 1
        got = output.logits[number][inputs["attention_mask"][number].bool()]
        with torch.no_grad():
            expected = family.logits(model, method, [Turn(ids, pixels)], [], per_image=True)
        alive = ~expected.isnan().any(-1)
        torch.testing.assert_close(got[alive], expected[alive], atol=TOLERANCE, rtol=0)
        assert (got[~alive] == 0).all()


@pytest.mark.parametrize("family", parameters("llava", "llava_next"), indirect=True)
def test_answers_and_a_later_turn_go_on_from_it(family: Family) -> None:
    model, prompts = family.model(), [family.prompt(2), family.prompt(1)]
    turns = [Turn(*family.prompt(2)), Turn([11, 12]), Turn(*family.prompt(2, seed=4))]
    output, _ = generate(model, METHOD, family.batch(prompts), new=2, budget_per="image")
    got = torch.stack(output.logits, dim=1)
    with torch.no_grad():
        for row, sample in enumerate(prompts):
            answer = output.sequences[row, -2:].tolist()
            expected = family.logits(model, METHOD, [Turn(*sample)], answer, per_image=True)[-3:-1]
            torch.testing.assert_close(got[row], expected, atol=TOLERANCE, rtol=0)
        cache = None
        with vitcop.prune(model, METHOD, budget_per="image"):
            for turn in turns:
                inputs = family.batch([(turn.ids, turn.pixels)])
                last = model(**{**inputs, "attention_mask": None}, past_key_values=cache, use_cache=True)
                cache = last.past_key_values
        expected = family.logits(model, METHOD, turns, [], per_image=True)[-1]
    torch.testing.assert_close(last.logits[0, -1], expected, atol=TOLERANCE, rtol=0)


CASES: dict[str, tuple[Any, list[Any]]] = {
    "fastv": (FastV(kept=5), slow_methods.fastv(5)),
    "pyramiddrop": (PyramidDrop(), slow_methods.pyramiddrop(8, 4, 2)),
    "sparsevlm": (SparseVLM(kept=(9, 5, 2)), slow_methods.sparsevlm(9, 5, 2)),
    "visionzip": (VisionZip(retain=8, contextual=2), slow_methods.visionzip(6, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_published_methods_treat_an_image_as_they_treat_a_sample(llava: Any, name: str) -> None:
    """Each its budget, its raters, its [CLS], and its means behind it."""
    method, choices = CASES[name]
    prompts = [prompt(2, text=8), prompt(0), prompt(1, seed=3, text=9), prompt(3, text=7)]
    report = assert_as_published(llava(), method, dict.fromkeys((16, 32, 48), choices), prompts, budget_per="image")
    one = report.stages[-1].tokens_out[2]
    assert [stage.tokens_out[3] for stage in report.stages] == [3 * stage.tokens_out[2] for stage in report.stages]
    assert report.stages[-1].tokens_out == [2 * one, 0, one, 3 * one]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_where_images_differ_and_one_stays_whole(name: str) -> None:
    """Two sizes: `retain` is more than the small one has, which is left as it is."""
    family = FAMILIES["llava_next"]
    model, prompts = family.model(), [family.prompt(3, seed=1), family.prompt(0), family.prompt(2, seed=2)]
    small = min(images_of(model, prompts[0]))
    method: Any = METHODS[name](retain=small)  # type: ignore[call-arg]
    if name == "sparsevlm":
        method = SparseVLM(kept=(small, small // 2, 2))
    if name == "pyramiddrop":  # shrinks all
        method = PyramidDrop()
    found = []
    for chosen in (prompts, prompts[2:]):
        with vitcop.prune(model, method, budget_per="image") as report, torch.no_grad():
            logits = model(**family.batch(chosen)).logits[len(chosen) - 1, -1]
        found.append(([stage.segments(len(chosen) - 1) for stage in report.stages], logits))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=TOLERANCE, rtol=0)
    counts = method.program(len(model.model.language_model.layers)).counts
    for stage in range(len(report.stages)):
        wanted = sum(min(counts(m)[stage], m) for m in images_of(model, prompts[2]))
        assert report.stages[stage].tokens_out == [wanted]


def test_prompts_with_one_image_are_as_ever(llava: Any) -> None:
    model, inputs = llava(), batch([prompt(1), prompt(0), prompt(1, seed=3, text=9)])
    output, report = generate(model, METHOD, inputs)
    again, other = generate(model, METHOD, inputs, budget_per="image")
    assert all(torch.equal(a, b) for a, b in zip(output.logits, again.logits, strict=True))
    assert all(a.rows == b.rows for a, b in zip(report.stages, other.stages, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_no_value_is_read(llava: Any, name: str) -> None:
    model, guard = llava(), NoHostReads()
    decoder = model.model.language_model
    method: Any = SparseVLM(kept=(9, 5, 2)) if name == "sparsevlm" else METHODS[name](retention=0.55)  # type: ignore[call-arg]
    with vitcop.prune(model, method, budget_per="image") as report, torch.no_grad():
        first = decoder.layers[0].register_forward_pre_hook(lambda *_: guard.__enter__() and None, prepend=True)
        last = decoder.register_forward_hook(lambda *_: guard.__exit__(None, None, None))
        try:
            model(**batch([prompt(n) for n in (2, 1, 0, 3)]), use_cache=True)
        finally:
            if guard.active:
                guard.__exit__(None, None, None)
            first.remove()
            last.remove()
    assert report.stages


@pytest.mark.family("internvl")
@pytest.mark.feature("several images or videos per prompt")
def test_tiles_that_touch_are_one_image() -> None:
    """InternVL is given tiles alone: here an image of two, and one of a single tile."""
    model = tiny_internvl.tiny_internvl()
    ids, pixels = tiny_internvl.prompt(3)
    first, count = ids.index(IMAGE), tiny_internvl.GRID**2
    ids = ids[: first + count] + ids[first + count + 2 :]  # the words between the first two tiles
    sample = ids, pixels
    images = images_of(model, sample)
    assert images == [2 * count, count]
    with vitcop.prune(model, METHOD, budget_per="image") as report, torch.no_grad():
        got = model(**batch([sample])).logits[0]
        expected = slow_logits(model, METHOD, [Turn(*sample)], [], per_image=True)
    alive = ~expected.isnan().any(-1)
    torch.testing.assert_close(got[alive], expected[alive], atol=TOLERANCE, rtol=0)
    assert shares(images, report.stages[-1].kept[0].tolist()) == [METHOD.counts(8, total)[2] for total in images]


def test_replays(llava: Any) -> None:
    model, inputs = llava(), batch([prompt(2), prompt(1)])
    output, report = generate(model, METHOD, inputs, budget_per="image")
    again, _ = generate(model, Replay(report), inputs)
    assert all(torch.equal(a, b) for a, b in zip(output.logits, again.logits, strict=True))


def test_several_images_run_eagerly_beside_cuda_graphs(llava: Any, recorder: Recorder) -> None:
    handle = Handle(llava(), METHOD, recorder, "image")
    with torch.no_grad():
        llava()(**batch([prompt(2)]))
        assert handle.report.notes[-1].endswith("ran eagerly (several images with budgets of their own)")
        llava()(**batch([prompt(1)]))
        assert "cuda_graph: replayed" in handle.report.notes[-1]
    handle.remove()


def test_two_layouts_of_as_many_tokens_are_not_replayed() -> None:
    family = FAMILIES["llava_next"]
    model = family.model()
    ids, media = family.prompt(2)
    one, two = images_of(model, (ids, media))
    first = ids.index(family.image_id)
    between = ids[first + one : first + one + 2]
    swapped = [
        *ids[:first],
        *[family.image_id] * two,
        *between,
        *[family.image_id] * one,
        *ids[first + one + two + 2 :],
    ]
    turned = swapped, type(media)(media.pictures[::-1], [])
    assert one != two and images_of(model, turned) == [two, one]
    with vitcop.prune(model, METHOD, budget_per="image") as report, torch.no_grad():
        both = model(**family.batch([(ids, media), turned])).logits
        alone = model(**family.batch([turned])).logits
        torch.testing.assert_close(both[1], alone[0], atol=TOLERANCE, rtol=0)
        model(**family.batch([(ids, media), turned]))
    assert sorted(report.stages[0].rows) == sorted([(one, two), (two, one)])
    with pytest.raises(ValueError, match="report: expected one layout of images for each number of visual tokens"):
        Replay(report)


def test_what_cannot_be_is_refused(llava: Any) -> None:
    with pytest.raises(ValueError, match="budget_per: expected one of 'sample', 'image', got 'tile'"):
        vitcop.attach(llava(), METHOD, budget_per="tile")
    # Of both images together the budget would do.
    method = VisionZip(retention=0.2, contextual=2)
    with vitcop.prune(llava(), method, budget_per="image"), pytest.raises(ValueError, match="got 3 tokens of which 2"):
        llava()(**batch([prompt(2)]))
    with vitcop.prune(llava(), method), torch.no_grad():
        llava()(**batch([prompt(2)]))
