"""The report tells what happened: counts, tokens, clusters, costs."""

from typing import Any

import pytest
import torch
from checks import generate
from tiny_llava import PATCHES, batch, prompt, tiny_llava

import vitcop
from vitcop import ViTCoP, budget
from vitcop.methods import Method, Plan, Program, Stage
from vitcop.methods.replay import Replay


def test_empty_before_the_first_prefill(llava: Any) -> None:
    with vitcop.prune(llava(), ViTCoP(retention=0.3)) as report:
        assert report.stages == [] and report.visual_tokens == []
        assert report.mean_tokens == report.cr_int == report.kv_bytes == report.selection_seconds == 0
        assert report.flops.eq9 == report.flops.counter_unpruned == 0


def test_stages_of_a_padded_batch(llava: Any) -> None:
    model, method = llava(2), ViTCoP(retention=0.3)
    _, report = generate(model, method, batch([prompt(1), prompt(0), prompt(2)]), new=2)
    assert [s.name for s in report.stages] == ["stage1", "stage2", "stage3"]
    assert [s.layer for s in report.stages] == [0, 2, 6]
    assert report.visual_tokens == [16, 0, 32]
    assert report.text_tokens == [len(prompt(n)[0]) - n * PATCHES for n in (1, 0, 2)]
    assert "layers scaled to a decoder of 8: shallow_layer 2, deep_layer 6" in report.notes[0]
    one, two = method.counts(8, 16), method.counts(8, 32)
    for number, stage in enumerate(report.stages):
        assert stage.tokens_out == [one[number], 0, two[number]]
        assert stage.tokens_in == ([16, 0, 32] if number == 0 else report.stages[number - 1].tokens_out)
        assert stage.kept.shape == (3, two[number])
        assert (stage.kept[1] == -1).all()
        for sample, count in enumerate(stage.tokens_out):
            kept = stage.kept[sample, :count].tolist()
            assert kept == sorted(set(kept)) and (stage.kept[sample, count:] == -1).all()
            segments = stage.segments(sample)
            assert len(segments) == count
            assert all(token in segment for token, segment in zip(kept, segments, strict=True))
        assert stage.seconds > 0
    first, second, _ = report.stages
    assert second.labels is not None and second.labels.shape == (3, two[0])
    assert second.merged is not None and second.merged.any()
    for sample in (0, 2):  # Stage II loses nothing: its segments are a partition of what Stage I kept
        members = [token for segment in second.segments(sample) for token in segment]
        assert sorted(members) == first.kept[sample, : first.tokens_out[sample]].tolist()
        merged = second.merged[sample, : second.tokens_out[sample]].tolist()
        assert all(len(s) == 1 or m for s, m in zip(second.segments(sample), merged, strict=True))
        labels = second.labels[sample, : second.tokens_in[sample]]
        assert (labels >= 0).all() and (second.labels[sample, second.tokens_in[sample] :] == -1).all()
    assert report.selection_seconds == pytest.approx(sum(s.seconds for s in report.stages))


def test_costs(llava: Any) -> None:
    model, method = llava(2), ViTCoP(retention=0.3)
    prompts = [prompt(1), prompt(2)]
    with vitcop.prune(model, method) as report, torch.no_grad():
        cache = model(**batch(prompts), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert report.kv_bytes == held < report.kv_bytes_unpruned
    with torch.no_grad():
        plain = model(**batch(prompts), use_cache=True).past_key_values
    assert report.kv_bytes_unpruned == sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers)

    text = model.config.text_config
    expected: dict[str, float] = {"eq9": 0, "counter": 0, "kept": 0, "mean": 0}
    for total, words in zip(report.visual_tokens, report.text_tokens, strict=True):
        schedule, counts = method.schedule(8, total), method.counts(8, total)
        inputs = budget.counter_inputs(total, counts, words, schedule)
        expected["eq9"] += budget.flops_eq9(counts, words, text.hidden_size, schedule) / 2
        expected["counter"] += budget.flops_counter(inputs, text.hidden_size, text.intermediate_size) / 2
        expected["kept"] += (1 - budget.cr_int(total, counts, schedule)) * total
        expected["mean"] += sum(budget.layer_tokens(total, counts, schedule)) / 8 / 2
    assert report.flops.eq9 == pytest.approx(expected["eq9"])
    assert report.flops.counter == pytest.approx(expected["counter"])
    assert report.cr_int == pytest.approx(1 - expected["kept"] / sum(report.visual_tokens))
    assert report.mean_tokens == pytest.approx(expected["mean"])
    assert report.flops.eq9 < report.flops.eq9_unpruned and report.flops.counter < report.flops.counter_unpruned


def test_replaying_a_report_gives_the_same_bits(llava: Any) -> None:
    model, inputs = llava(), batch([prompt(1), prompt(2), prompt(0)])
    for semantics in ("paper", "released"):
        output, report = generate(model, ViTCoP(retention=0.3, semantics=semantics), inputs)
        again, replayed = generate(model, Replay(report), inputs)
        assert all(torch.equal(a, b) for a, b in zip(output.logits, again.logits, strict=True))
        assert torch.equal(report.stages[2].kept, replayed.stages[2].kept)
        with vitcop.prune(model, Replay(report)), pytest.raises(ValueError, match="replay: expected prompts of"):
            model(**batch([prompt(3)]))


def test_a_new_method_needs_no_adapter(llava: Any) -> None:
    """FastV in a few lines: drop half of the visual tokens at layer 2 by the last token's attention."""

    class FastV(Method):
        def program(self, num_layers: int) -> Program:
            def select(ctx: Any) -> Plan:
                import vitcop_kernels

                return Plan(vitcop_kernels.select_tokens(ctx.attention("previous"), ctx.budget, largest=True))

            return Program([Stage("fastv", 2, select)], lambda m: [m // 2])

    model = llava()
    output, report = generate(model, FastV(), batch([prompt(1), prompt(2)]))
    assert [s.tokens_out for s in report.stages] == [[8, 16]]
    lengths = [layer.keys.shape[2] for layer in output.past_key_values.layers]
    assert lengths[0] == lengths[1] > lengths[2] == lengths[-1]


def test_layers_given_by_the_caller_stay() -> None:
    model = tiny_llava(layers=6)
    with vitcop.prune(model, ViTCoP(retention=0.5, shallow_layer=1, deep_layer=3)) as report, torch.no_grad():
        model(**batch([prompt(1)]))
    assert [s.layer for s in report.stages] == [0, 1, 3] and report.notes == []
