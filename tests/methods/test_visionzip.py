"""VisionZip does as its code, and keeps as many tokens as its settings say."""

from typing import Any

import pytest
import slow_vision
import torch
from against import assert_as_published
from checks import generate
from families import FAMILIES, Family, parameters
from slow_methods import visionzip
from tiny_llava import batch, prompt

import vitcop
from vitcop import VisionZip
from vitcop.adapters.llava import ClipTokens
from vitcop.adapters.tower import TileTokens, TowerAdapter


@pytest.mark.parametrize(("retain", "split"), [(192, (162, 30)), (128, (108, 20)), (64, (54, 10))])
def test_published_settings(retain: int, split: tuple[int, int]) -> None:
    method = VisionZip(retain=retain)
    assert method.split(576) == split
    program = method.program(32)
    assert program.counts(576) == [retain] and [stage.layer for stage in program.stages] == [0]


TOWERS = parameters(*(f.name for f in FAMILIES.values() if f.tower == "vision_tower" and f.name != "llava"))


@pytest.mark.parametrize(
    ("family", "budget_per"),
    [pytest.param(*p.values, "sample", id=p.id) for p in TOWERS]
    + [pytest.param(*p.values, "image", id=f"{p.id}, per image") for p in parameters("llava_next", "llava_onevision")],
)
def test_on_tiles_and_frames(family: Family, budget_per: str) -> None:
    """Which have no [CLS] in common: base pictures and tiles, shrunk pictures, pooled frames, InternVL's squares."""
    prompts = [family.prompts()[-1], family.prompt(0), family.prompt(2)]
    model, method = family.model(), VisionZip(retain=8, contextual=3)
    choices = dict.fromkeys((family.count(ids) for ids, _ in prompts), visionzip(5, 3))
    report = assert_as_published(model, method, choices, prompts, 1, budget_per, family.batch)
    images = 2 if budget_per == "image" else 1
    assert report.stages[0].tokens_out[1:] == [0, 8 * images]


def test_line_breaks_stay_where_there_is_room() -> None:
    """As they are, behind all patches: of these all but two are dominant; the two are targets, like most breaks."""
    family = FAMILIES["llava_next"]
    model, sample = family.model(), family.prompt(1)
    seen = slow_vision.see(model, sample[1])["image"][0]
    breaks = [i for i, token in enumerate(seen) if token.state is None]
    method, inputs = VisionZip(retain=len(seen) - 1, contextual=len(breaks) + 1), []
    with vitcop.prune(model, method) as report, torch.no_grad():
        first = model.model.language_model.layers[0].input_layernorm  # in the layer: what is left
        hook = first.register_forward_pre_hook(lambda m, args: inputs.append(args[0][0]))
        model(**family.batch([sample]))
        hook.remove()
    kept = sorted(token for members in report.stages[0].segments(0) for token in members)
    assert kept == [i for i in range(len(seen)) if i != breaks[-1]]
    left = [token.hidden for i, token in enumerate(seen) if i in kept]
    apart = torch.cdist(torch.stack(left), inputs[0]).amin(1)
    assert apart.max() < 1e-3


@pytest.mark.parametrize("contextual", [1, 3])
def test_chooses_and_merges_as_the_published_code(llava: Any, contextual: int) -> None:
    """A padded batch of one image, text alone, and two images, which share the budget."""
    prompts = [prompt(1), prompt(0), prompt(2, text=8), prompt(1, seed=3, text=9)]
    method = VisionZip(retain=8, contextual=contextual)
    dominant = 8 - contextual
    choices = {16: visionzip(dominant, contextual), 32: visionzip(dominant, contextual)}
    report = assert_as_published(llava(), method, choices, prompts)
    (stage,) = report.stages
    assert stage.tokens_out == [8, 0, 8, 8] and report.mean_tokens == 8
    segments = stage.segments(0)
    assert segments[0] == []  # [CLS] is none of the visual tokens
    assert [len(members) for members in segments[1:dominant]] == [1] * (dominant - 1)
    assert sorted(token for members in segments for token in members) == list(range(16))  # nothing is lost
    assert stage.merged is not None and stage.merged[0].tolist() == [False] * dominant + [True] * contextual


def test_prunes_behind_what_another_method_would_have_seen(llava: Any) -> None:
    """Layers before the decoder run on everything: the tower and the projector are not touched."""
    model, seen = llava(), []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda m, a, out: seen.append(out.shape[-2]))
    try:
        generate(model, VisionZip(retain=8), batch([prompt(1)]), new=1)
    finally:
        hook.remove()
    assert seen == [16, 2]  # [CLS] and one contextual token


@pytest.mark.parametrize("family", parameters("llava", "llava_next"))
def test_gradients_reach_the_projector_and_the_tower(family: Family) -> None:
    """Past line breaks, which have no states: NaN stays there."""
    model = family.build(layers=4, seed=1)
    projector = model.model.multi_modal_projector.linear_1.weight
    tower = model.model.vision_tower
    first = getattr(tower, "vision_model", tower).embeddings.patch_embedding.weight
    with vitcop.prune(model, VisionZip(retain=8, contextual=2)):
        loss = model(**family.batch([family.prompt(1)])).logits[0, -1].logsumexp(-1)
        grads = torch.autograd.grad(loss, [projector, first])
    for grad in grads:
        assert grad.isfinite().all() and (grad != 0).any()


def test_a_tower_without_cls_gives_its_place_to_another_token(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipTokens, "cls_states", lambda self: None)
    _, report = generate(llava(), VisionZip(retain=8, contextual=2), batch([prompt(1)]), new=1)
    segments = report.stages[0].segments(0)
    assert [len(members) for members in segments[:6]] == [1] * 6 and len(segments) == 8


def test_an_adapter_that_does_not_offer_the_tower_is_refused(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch([prompt(1)])
    monkeypatch.delattr(TileTokens, "states")
    with (
        vitcop.prune(llava(), VisionZip(retain=8)),
        pytest.raises(NotImplementedError, match="hidden states of the vision tower, which LlavaAdapter does not"),
    ):
        llava()(**inputs)
    monkeypatch.undo()
    monkeypatch.delattr(TowerAdapter, "project")
    with (
        vitcop.prune(llava(), VisionZip(retain=8)),
        pytest.raises(NotImplementedError, match="no projector, which LlavaAdapter does not offer"),
    ):
        llava()(**inputs)


def test_wrong_settings_and_infeasible_budgets(llava: Any) -> None:
    with pytest.raises(ValueError, match="VisionZip: expected retain or retention, or nothing else, got none"):
        VisionZip()
    with pytest.raises(ValueError, match="contextual: expected a number of tokens, at least 1, got 0"):
        VisionZip(retain=64, contextual=0)
    with pytest.raises(ValueError, match=r"at least 2 dominant tokens, \[CLS\] and another, got 4 tokens of which 3"):
        VisionZip(retain=4, contextual=3).program(32).counts(576)
    with (
        vitcop.prune(llava(), VisionZip(retain=3)),
        pytest.raises(ValueError, match=r"more dominant tokens than the 2 \[CLS\] tokens of the images, got 2"),
    ):
        llava()(**batch([prompt(2)]))
