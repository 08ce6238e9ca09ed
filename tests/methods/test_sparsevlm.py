"""SparseVLM does as its code, and keeps as many tokens as its settings say."""

from typing import Any

import pytest
import torch
from against import assert_as_published
from checks import TOLERANCE, generate
from slow_llava import Turn
from slow_methods import logits, sparsevlm
from tiny_llava import batch, prompt

import vitcop
from vitcop import SparseVLM


@pytest.mark.parametrize(
    ("retain", "kept", "counts", "average"),
    [
        (192, [300, 200, 110], [309, 204, 113], 206.5),
        (128, [303, 110, 36], [312, 117, 39], 145.4),
        (64, [66, 30, 17], [82, 32, 18], 82.25),
    ],
)
def test_published_settings_and_their_true_averages(
    retain: int, kept: list[int], counts: list[int], average: float
) -> None:
    method = SparseVLM(retain=retain)
    assert [stays for stays, _ in method.cuts(32, 576)] == kept
    program = method.program(32)
    assert program.counts(576) == counts
    assert [stage.layer for stage in program.stages] == [3, 7, 16]  # what comes out of layers 2, 6 and 15
    assert (3 * 576 + 4 * counts[0] + 9 * counts[1] + 16 * counts[2]) / 32 == pytest.approx(average, abs=0.01)


@pytest.mark.parametrize(("retain", "total"), [(100, 576), (200, 576), (250, 1152), (64, 400)])
def test_other_budgets_are_met_by_the_true_average(retain: int, total: int) -> None:
    for method in (SparseVLM(retain=retain), SparseVLM(retain=retain, recycle=False)):
        a, b, c = method.program(32).counts(total)
        # Each count is floored, and where one more token stays there may be one mean less: below by two at most.
        assert 0 <= retain - (3 * total + 4 * a + 9 * b + 16 * c) / 32 < 2


def test_chooses_and_recycles_as_the_published_code(llava: Any) -> None:
    """A padded batch of one image, text alone, and two images."""
    prompts = [prompt(1, text=9), prompt(0), prompt(2, seed=1, text=12)]
    method = SparseVLM(kept=(9, 5, 2))
    choices = {16: sparsevlm(9, 5, 2), 32: sparsevlm(9, 5, 2)}
    report = assert_as_published(llava(), method, choices, prompts, new=3)
    assert [s.layer for s in report.stages] == [3, 4, 5]
    assert [s.tokens_out for s in report.stages] == [[10, 0, 10], [6, 0, 6], [3, 0, 3]]
    first = report.stages[0]
    assert first.merged is not None and first.merged[0].tolist() == [False] * 9 + [True]
    segments = first.segments(0)
    assert all(len(members) == 1 for members in segments[:9])
    assert len(segments[9]) == int(7 * 0.3) + 1 and report.mean_tokens == (3 * 48 + 2 * 10 + 2 * 6 + 2 * 3 * 3) / 16


@pytest.mark.parametrize(("key_heads", "attention"), [(4, "sdpa"), (2, "eager")])
def test_several_means_stand_behind_the_rest_in_the_codes_order(llava: Any, key_heads: int, attention: str) -> None:
    """Of 64 tokens 4 stay and 18 of the others become 2 means."""
    method = SparseVLM(kept=(4, 3), layers=(2, 5))
    report = assert_as_published(
        llava(key_heads, attention), method, {64: sparsevlm(4, 3)}, [prompt(4, text=7), prompt(4, seed=3, text=12)]
    )
    assert report.stages[0].tokens_out == [6, 6]
    assert report.stages[0].merged.tolist() == [[False] * 4 + [True] * 2] * 2  # type: ignore[union-attr]


def test_without_recycling(llava: Any) -> None:
    method = SparseVLM(kept=(9, 5), layers=(2, 5), recycle=False)
    _, report = generate(llava(), method, batch([prompt(1)]), new=1)
    assert [s.tokens_out for s in report.stages] == [[9], [5]]
    assert all(s.merged is None for s in report.stages)


def test_one_text_token_rates_alone(llava: Any) -> None:
    """Its share is the mean, so that none exceeds it."""
    ids, pixels = prompt(1, text=0)
    assert_as_published(llava(), SparseVLM(kept=(9, 5, 2)), {16: sparsevlm(9, 5, 2)}, [(ids[:-1], pixels)])


def test_raters_are_found_in_front_of_padding_on_the_right(llava: Any) -> None:
    model, method, choices = llava(), SparseVLM(kept=(9, 5, 2)), sparsevlm(9, 5, 2)
    prompts = [prompt(1, text=9), prompt(2, text=6), prompt(1, seed=2, text=3)]
    inputs = batch(prompts, "right")
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with vitcop.prune(model, method), torch.no_grad():
        got = model(**inputs, position_ids=positions).logits
    for sample, (ids, pixels) in enumerate(prompts):
        expected = logits(model, method, choices, Turn(ids, pixels), [7])[0]
        torch.testing.assert_close(got[sample, len(ids) - 1], expected, atol=TOLERANCE, rtol=0)


def test_gradients_flow_through_means(llava: Any) -> None:
    """To tokens that only a mean has: the embedding of a recycled token is moved by the loss."""
    model = llava()
    inputs = batch([prompt(1)])
    with vitcop.prune(model, SparseVLM(kept=(2,), layers=(1,))) as report:
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
        visual = inputs["input_ids"] == 99
        features = torch.randn(int(visual.sum()), embeds.shape[-1], generator=torch.Generator().manual_seed(0))
        leaf = features.requires_grad_()
        hook = model.model.multi_modal_projector.register_forward_hook(lambda *_: leaf[None])
        try:
            loss = model(**inputs).logits[0, -1].logsumexp(-1)
        finally:
            hook.remove()
        (grad,) = torch.autograd.grad(loss, leaf)
    assert len(report.stages[0].segments(0)[-1]) > 1
    assert (grad.abs().sum(1) > 0).all()  # layer 0 lets every token be heard


def test_wrong_settings_and_infeasible_budgets() -> None:
    with pytest.raises(ValueError, match="SparseVLM: expected retain or retention, or kept, got none"):
        SparseVLM()
    with pytest.raises(ValueError, match=r"kept: expected numbers of tokens, at least 1, got \(3, 0\)"):
        SparseVLM(kept=(3, 0))
    with pytest.raises(ValueError, match=r"kept: expected tokens for each of the layers \[3, 7, 16\], got \(3, 2\)"):
        SparseVLM(kept=(3, 2)).program(32).counts(576)
    with pytest.raises(ValueError, match=r"infeasible budget: expected 57.1 to 279.0 of 576 visual tokens"):
        SparseVLM(retain=54).program(32).counts(576)
    assert set(SparseVLM(retain=300).program(32).counts(576)) == {576}  # more than it can average where it prunes
