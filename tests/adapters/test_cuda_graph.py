"""Prefills replayed from a graph answer as eager ones, whatever came before and whatever comes after.

Without a GPU the graph is `graph_recorder.Graph`, which has the semantics of a CUDA graph.
"""

import copy
from typing import Any

import pytest
import torch
from families import Family
from graph_recorder import Recorder
from replays import METHODS, TOLERANCE, assert_same_cache, assert_same_report, eager, prompts
from tiny_llava import batch, prompt
from torch import Tensor

import vitcop
from vitcop import ViTCoP


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_prompts_in_mixed_order(llava: Any, graphs: Any, recorder: Recorder, name: str, images: int) -> None:
    """Each prefill once eagerly, then all replayed; what they keep is looked at when the last one has been replayed."""
    options = {"retention": 0.3, **METHODS[name]}
    if name == "without Stage I":
        options["retention"] = 0.5
    model, method = llava(2), ViTCoP(**options)
    inputs = [batch(p) for p in prompts(images)]
    expected = [eager(model, method, i) for i in inputs]
    handle = graphs(model, method)
    got = []
    with torch.no_grad():
        for i in [*inputs, *inputs[::-1]]:
            output = model(**i, use_cache=True)
            got.append((output, output.past_key_values, copy.copy(handle.report)))
    assert recorder.events.count("replay") == 2 * len(inputs)
    assert recorder.events.count("capture") == 2  # batches of one and of two
    recorder.poison()
    handle.remove()
    for (output, cache, report), (want, want_cache, want_report) in zip(got, [*expected, *expected[::-1]], strict=True):
        torch.testing.assert_close(output.logits, want.logits, atol=TOLERANCE, rtol=0)
        assert_same_cache(cache, want_cache)
        assert_same_report(report, want_report)


@pytest.mark.parametrize("name", [name for name in vitcop.methods.METHODS if name != "vitcop"])
def test_every_method(llava: Any, graphs: Any, recorder: Recorder, name: str) -> None:
    model, method = llava(), vitcop.methods.METHODS[name](retention=0.5)  # type: ignore[call-arg]
    inputs = [batch(p) for p in prompts(2)]
    expected = [eager(model, method, i) for i in inputs]
    handle = graphs(model, method)
    got = []
    with torch.no_grad():
        for i in inputs:
            output = model(**i, use_cache=True)
            assert "replayed" in handle.report.notes[-1]
            got.append((output, output.past_key_values, copy.copy(handle.report)))
    recorder.poison()
    for (output, cache, report), (want, want_cache, want_report) in zip(got, expected, strict=True):
        torch.testing.assert_close(output.logits, want.logits, atol=TOLERANCE, rtol=0)
        assert_same_cache(cache, want_cache)
        assert_same_report(report, want_report)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_full_bucket_gives_the_same_bits(llava: Any, graphs: Any, attention: str) -> None:
    """Without padding the same products of the same shapes are computed."""
    model, method = llava(4, attention), ViTCoP(retention=0.3)
    ids, _ = prompt(1)
    inputs = [batch([prompt(1, seed=s, text=64 - len(ids) + 5)]) for s in range(3)]
    assert all(i["input_ids"].shape[1] == 64 for i in inputs)
    expected = [eager(model, method, i) for i in inputs]
    handle = graphs(model, method)
    with torch.no_grad():
        for i, (want, cache, report) in zip(inputs, expected, strict=True):
            output = model(**i, use_cache=True)
            assert torch.equal(output.logits, want.logits)
            for a, b in zip(output.past_key_values.layers, cache.layers, strict=True):
                assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
            assert_same_report(handle.report, report)


def test_every_family_generates_the_same(family: Family, graphs: Any, recorder: Recorder) -> None:
    """Greedy, with decoding steps after each prefill. Qwen3-VL, which adds vision features inside its decoder, says
    that it is not replayed."""
    model, method = family.model(), ViTCoP(retention=0.3)
    options: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    inputs = [family.batch([family.prompt(1, seed=s)]) for s in (0, 1, 2)]
    with vitcop.prune(model, method):
        expected = [model.generate(**i, **options) for i in inputs]
    handle = graphs(model, method)
    got = [model.generate(**i, **options) for i in inputs]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.sequences, b.sequences)
        for x, y in zip(a.logits, b.logits, strict=True):
            torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)
    if family.name == "qwen3_vl":
        assert "vision features are added inside the decoder" in handle.report.notes[-1]
    else:
        assert recorder.events.count("replay") == len(inputs), handle.report.notes


def test_interleaved_requests_keep_their_caches(llava: Any, graphs: Any, recorder: Recorder) -> None:
    model, method = llava(), ViTCoP(retention=0.3)
    inputs = [batch([prompt(1, seed=s, text=5 + s)]) for s in range(3)]
    said = [torch.tensor([[11 + s]]) for s in range(4)]

    def answer(interleaved: bool) -> list[list[Tensor]]:
        with torch.no_grad():
            caches, logits = [], [[] for _ in inputs]  # type: ignore[var-annotated]
            for i in inputs:
                caches.append(model(**i, use_cache=True).past_key_values)
            for step, token in enumerate(said):
                for number, cache in enumerate(caches):
                    logits[number].append(model(input_ids=token, past_key_values=cache).logits)
                if interleaved:
                    model(**inputs[step % 3], use_cache=True)
                    recorder.poison()
        return logits

    with vitcop.prune(model, method):
        expected = answer(False)
    graphs(model, method)
    for a, b in zip(answer(True), expected, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)
    assert recorder.events.count("replay") == 7


def test_a_cache_given_by_the_caller_and_inference_mode(llava: Any, graphs: Any, recorder: Recorder) -> None:
    from transformers import DynamicCache

    model, method = llava(), ViTCoP(retention=0.3)
    inputs = [batch([prompt(1, seed=s)]) for s in range(2)]
    expected = [eager(model, method, i)[0].logits for i in inputs]
    graphs(model, method)
    for mode in (torch.inference_mode(), torch.no_grad()):
        for i, want in zip(inputs, expected, strict=True):
            cache = DynamicCache(config=model.config.text_config)
            with mode:
                output = model(**i, past_key_values=cache)
            assert output.past_key_values is cache
            torch.testing.assert_close(output.logits, want, atol=TOLERANCE, rtol=0)
    assert recorder.events.count("replay") == 4 and recorder.events.count("capture") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(llava: Any, name: str) -> None:
    """As above, with torch.cuda.CUDAGraph, and from several streams."""
    # Ten times TOLERANCE: cuBLAS may also choose another kernel, with other tiles and another split of the sum, for the
    # padded shapes. A bound for float32 products; it holds on an H200.
    atol = 10 * TOLERANCE
    options = {"retention": 0.5 if name == "without Stage I" else 0.3, **METHODS[name]}
    model, method = copy.deepcopy(llava(2)).cuda(), ViTCoP(**options)
    inputs = [{k: t.cuda() for k, t in batch(p).items()} for p in prompts(1)]
    expected = [eager(model, method, i) for i in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    with vitcop.prune(model, method, cuda_graph=True) as report, torch.no_grad():
        got = []
        for number, i in enumerate(inputs * 3):
            with torch.cuda.stream(streams[number % 3]):
                output = model(**i, use_cache=True)
                assert "replayed" in report.notes[-1], report.notes
                got.append((output, output.past_key_values, copy.copy(report)))
        torch.cuda.synchronize()
        for (output, cache, seen), (want, want_cache, want_report) in zip(got, expected * 3, strict=True):
            torch.testing.assert_close(output.logits, want.logits, atol=atol, rtol=0)
            assert_same_report(seen, want_report)
            for a, b in zip(cache.layers, want_cache.layers, strict=True):
                torch.testing.assert_close(a.keys, b.keys, atol=atol, rtol=0)
