"""Qwen2.5-VL and Qwen3-VL under pruning, against a model that recomputes every token and patch without a cache."""

import functools
from typing import Any

import pytest
import slow_qwen
import torch
from checks import OLD, TOLERANCE, generate
from test_no_host_sync import Watch
from tiny_qwen import FAMILIES, IMAGE, START, VIDEO, Sample, batch, prompt, tiny_qwen
from torch import Tensor

import vitcop
from vitcop import ViTCoP
from vitcop.adapters import adapter_for

METHOD = ViTCoP(retention=0.3)
each = pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.family(name)) for name in FAMILIES])


@functools.cache
def qwen(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    return tiny_qwen(family, attention=attention, dtype=dtype)


def expected_logits(model: Any, method: Any, turns: list[Sample], answer: list[int], kept: Any = None) -> Tensor:
    """[len(answer), vocabulary] logits that each token of `answer` is drawn from."""
    with torch.no_grad():
        everything = slow_qwen.logits(model, method, turns, answer, kept)
    return everything[-len(answer) - 1 : -1]


def assert_answers(model: Any, method: Any, samples: list[Sample], output: Any) -> None:
    got = torch.stack(output.logits, dim=1)  # [B, steps, vocabulary]
    for number, sample in enumerate(samples):
        answer = output.sequences[number, -got.shape[1] :].tolist()
        expected = expected_logits(model, method, [sample], answer)
        torch.testing.assert_close(got[number], expected, atol=TOLERANCE, rtol=0)


def position_ids(model: Any, turns: list[Sample]) -> list[Tensor]:
    """[3, 1, n] of each turn of one conversation."""
    tokens: list[Any] = []
    ids = []
    for number, turn in enumerate(turns):
        new = slow_qwen.embed(model, turn, number, tokens)
        tokens += new
        ids.append(torch.tensor([token.place for token in new]).T[:, None])
    return ids


VARIANTS: dict[str, tuple[dict[str, Any], list[tuple[int, ...]], str]] = {
    "paper": (dict(retention=0.3), [(4, 5)], "sdpa"),
    "two sizes, eager": (dict(retention=0.3), [(3, 4), (5, 3)], "eager"),
    "film": (dict(retention=0.4), [(2, 3, 4)], "sdpa"),
    "film and picture": (dict(retention=0.4, positions="original"), [(2, 3, 3), (3, 4)], "sdpa"),
    "merges of the release": (dict(retention=0.3, semantics="released", positions="original"), [(4, 5)], "sdpa"),
    "attention": (dict(retention=0.3, saliency="attention"), [(4, 5)], "sdpa"),
    "attention of the layer before": (
        dict(retention=0.3, saliency="attention", key_source="previous"),
        [(4, 4)],
        "eager",
    ),
    "merge at layer 1, prune at 2": (
        dict(stage1_ratio=0.6, stage2_ratio=0.4, shallow_layer=1, deep_layer=2, features="hidden"),
        [(4, 5)],
        "sdpa",
    ),
    "without Stage I": (dict(retention=0.5, stage1_ratio=1), [(4, 4)], "sdpa"),
    "shares of the budget": (dict(retention=0.3, stage1_power=0.7, merged_share=0.6), [(2, 3, 4)], "sdpa"),
}


ONCE = {
    "attention": "qwen2_5_vl",
    "attention of the layer before": "qwen3_vl",
    "without Stage I": "qwen3_vl",
    "shares of the budget": "qwen3_vl",
}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=pytest.mark.family(family))
        for name in VARIANTS
        for family in FAMILIES
        if ONCE.get(name, family) == family
    ],
)
@pytest.mark.feature("greedy")
@pytest.mark.feature("eager attention")
@pytest.mark.feature("several images or videos per prompt")
def test_greedy_equals_recomputing_every_token(name: str, family: str) -> None:
    options, grids, attention = VARIANTS[name]
    model, method, sample = qwen(family, attention), ViTCoP(**options), prompt(*grids, family=family)
    output, report = generate(model, method, batch(model, [sample]), new=3)
    assert report.visual_tokens == [sum(id in (IMAGE, VIDEO) for id in sample.ids)]
    assert report.stages[-1].tokens_out[0] < report.stages[1].tokens_out[0] < report.visual_tokens[0]
    if "stage1_ratio" not in options:
        assert report.stages[1].merged is not None and report.stages[1].merged.any()
    assert_answers(model, method, [sample], output)


@each
@pytest.mark.feature("several turns, one cache")
@pytest.mark.feature("a new image in a later turn")
def test_turns_with_images_reuse_one_cache(family: str) -> None:
    """Each turn prunes its own images alone and sees the earlier ones as they were left; ids go on in three axes."""
    model = qwen(family)
    turns = [
        prompt((3, 4), family=family),
        Sample([11, 12], []),
        prompt((4, 3), (2, 2, 3), family=family, seed=4),
        Sample([13], []),
    ]
    got, cache = [], None
    with vitcop.prune(model, METHOD) as report, torch.no_grad():
        for turn, ids in zip(turns, position_ids(model, turns), strict=True):
            inputs = batch(model, [turn])
            del inputs["attention_mask"]
            output = model(**inputs, position_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            got.append(output.logits[0])
    assert report.visual_tokens == [24]
    assert cache is not None and cache.get_seq_length() == sum(len(turn.ids) for turn in turns)
    with torch.no_grad():
        expected = slow_qwen.logits(model, METHOD, turns, [])
    alive = ~expected.isnan().any(-1)
    torch.testing.assert_close(torch.cat(got)[alive], expected[alive], atol=TOLERANCE, rtol=0)


@each
def test_a_later_text_turn_goes_on_behind_the_picture(family: str) -> None:
    """The model's own position ids, from its rope deltas and the length of the unpruned prompt."""
    model, sample = qwen(family), prompt((4, 3), family=family)
    inputs = batch(model, [sample])
    with vitcop.prune(model, METHOD), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        said = torch.tensor([[11, 12, 13]])
        options = {"cache_position": len(sample.ids) + torch.arange(3)} if OLD else {}
        got = model(input_ids=said, past_key_values=cache, **options).logits[0]
    expected = expected_logits(model, METHOD, [sample], [11, 12, 13, 0])[1:]
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@each
@pytest.mark.feature("beam search")
def test_beams_are_those_of_single_sequences(family: str) -> None:
    """Beams repeat pictures, prompts and what is added to them: the best one's probability is the reference's."""
    model = qwen(family)
    samples = [prompt((3, 4), family=family), prompt((4, 3), family=family, seed=3)]
    output, _ = generate(
        model, METHOD, batch(model, samples), new=2, num_beams=2, output_scores=True, length_penalty=0.0
    )
    for number, sample in enumerate(samples):
        answer = output.sequences[number, -2:].tolist()
        steps = expected_logits(model, METHOD, [sample], answer).log_softmax(-1)
        total = sum(float(step[token]) for step, token in zip(steps, answer, strict=True))
        assert output.sequences_scores[number].item() == pytest.approx(total, abs=1e-3)


@each
@pytest.mark.feature("labels, loss and gradients")
def test_gradients_flow_through_what_survives(family: str) -> None:
    model = qwen(family)
    inputs = batch(model, [prompt((3, 4), family=family)])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    mergers = [model.model.visual.merger, *getattr(model.model.visual, "deepstack_merger_list", [])]
    weights = [next(w for w in merger.parameters() if w.dim() > 1) for merger in mergers]
    with vitcop.prune(model, METHOD):
        grads = torch.autograd.grad(model(**inputs, labels=labels).loss, weights)
    assert len(grads) == (1 if family == "qwen2_5_vl" else 4)
    assert all(grad.isfinite().all() and (grad != 0).any() for grad in grads)


@each
def test_no_value_is_read_in_the_decoder(family: str) -> None:
    model, watch = qwen(family), Watch()
    decoder = model.model.language_model
    inputs = batch(model, [prompt((3, 4), (2, 2, 3), family=family), prompt((3, 3), family=family)])
    with vitcop.prune(model, METHOD) as report, torch.no_grad():
        first = decoder.layers[0].register_forward_pre_hook(lambda *_: watch.__enter__() and None, prepend=True)
        last = decoder.norm.register_forward_pre_hook(lambda *_: watch.__exit__(None, None, None))
        model(**inputs)
        first.remove()
        last.remove()
    assert len(report.stages) == 3
    assert watch.count > 100
    assert watch.found == []


@each
def test_positions_cannot_be_made_contiguous(family: str) -> None:
    model = qwen(family)
    with vitcop.prune(model, METHOD) as report:
        assert report.positions == "original"
        assert any("survivors keep theirs" in note for note in report.notes)
    with vitcop.prune(model, ViTCoP(retention=0.3, positions="original")) as report:
        assert not any("survivors" in note for note in report.notes)
    with pytest.raises(NotImplementedError, match=r"positions: expected 'compact' or 'original'.*got 'released'"):
        vitcop.attach(model, ViTCoP(retention=0.3, semantics="released"))


def test_towers_that_cannot_be_pruned() -> None:
    model = tiny_qwen("qwen2_5_vl", layers=3)
    model.model.visual.fullatt_block_indexes = []
    with pytest.raises(NotImplementedError, match="fullatt_block_indexes: expected a vision block with full attention"):
        vitcop.attach(model, METHOD)
    with pytest.raises(NotImplementedError, match="expected fewer than the decoder's 3 layers, got 3"):
        vitcop.attach(tiny_qwen("qwen3_vl", layers=3), METHOD)


def test_wrong_placeholders_are_refused() -> None:
    model, sample = qwen("qwen2_5_vl"), prompt((3, 4))
    inputs = batch(model, [sample])
    with vitcop.prune(model, METHOD), torch.no_grad():
        with pytest.raises(ValueError, match="visual tokens exactly where images are given"):
            model(input_ids=torch.tensor([[1, START, 3]]), pixel_values=inputs["pixel_values"])
        model(**inputs)


@pytest.mark.parametrize("grids", [[(1, 4, 4)], [(2, 5, 3), (1, 1, 7)], [(3, 3, 8), (1, 2, 2), (1, 6, 5)]])
def test_the_order_of_windows_is_the_models(grids: list[tuple[int, int, int]]) -> None:
    tower = qwen("qwen2_5_vl").model.visual
    grid = torch.tensor([(frames, 2 * rows, 2 * cols) for frames, rows, cols in grids])
    if OLD:
        index = tower.get_window_index(grid)[0]
    else:
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(grid, spatial_merge_size=2, window_size=16, patch_size=4)
    adapter: Any = adapter_for(qwen("qwen2_5_vl"))
    assert torch.equal(adapter.place(grids), index.argsort())
