"""Prefills replayed from a graph answer as eager ones, whatever came before and whatever comes after.

Without a GPU the graph is `graph_recorder.Graph`, which has the semantics of a CUDA graph.
"""

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_qwen
import torch
from families import Family
from graph_recorder import Graph, Recorder
from tiny_llava import IMAGE, batch, prompt
from torch import Tensor

import vitcop
from vitcop import ViTCoP
from vitcop.methods import Method, Plan, Program, Stage
from vitcop.session import Handle

# Logits have a standard deviation of about 2.5. Right padding changes the shapes of matrix products, and with them the
# order of float32 sums: seen are differences of 1e-5.
TOLERANCE = 1e-4


def eager(model: Any, method: Method, inputs: dict[str, Any], **options: Any) -> tuple[Any, Any, vitcop.Report]:
    with vitcop.prune(model, method) as report, torch.no_grad():
        output = model(**inputs, use_cache=True, **options)
    return output, output.past_key_values, report


def assert_same_report(got: vitcop.Report, expected: vitcop.Report) -> None:
    for name in ("visual_tokens", "text_tokens", "kv_bytes", "kv_bytes_unpruned", "flops", "mean_tokens"):
        assert getattr(got, name) == getattr(expected, name), name
    for a, b in zip(got.stages, expected.stages, strict=True):
        assert (a.name, a.layer, a.tokens_in, a.tokens_out, a.rows) == (
            b.name,
            b.layer,
            b.tokens_in,
            b.tokens_out,
            b.rows,
        )
        for name in ("kept", "merged", "labels"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None) and (x is None or torch.equal(x, y)), (a.name, name)
        for sample in range(len(a.tokens_in)):
            assert a.segments(sample) == b.segments(sample)


def assert_same_cache(got: Any, expected: Any) -> None:
    assert got.get_seq_length() == expected.get_seq_length()
    for a, b in zip(got.layers, expected.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(a.values, b.values, atol=TOLERANCE, rtol=0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def graphs(recorder: Recorder) -> Iterator[Any]:
    """graphs(model, method): a handle whose prefills are replayed."""
    handles: list[Handle] = []

    def attach(model: Any, method: Method) -> Handle:
        handles.append(Handle(model, method, recorder))
        return handles[-1]

    yield attach
    for handle in handles:
        handle.remove()
    assert recorder.graphs == []


def moved(ids: list[int], pixels: Tensor, front: int) -> tuple[list[int], Tensor]:
    """The same images, with `front` words of the question before them instead of behind."""
    first, last = ids.index(IMAGE), len(ids) - ids[::-1].index(IMAGE)
    return ids[:first] + ids[-front:] + ids[first:last] + ids[last:-front], pixels


def prompts(images: int) -> list[list[Any]]:
    """Batches of one or two prompts of one bucket: other words, other images, other lengths, another place."""
    one = [[prompt(images, seed=s, text=5 + 3 * s)] for s in range(3)]
    two = [[prompt(images, seed=s), prompt(images, seed=s + 10)] for s in range(2)]
    return [*one, [moved(*prompt(images, seed=5, text=9), front=4)], *two, [prompt(images, seed=6, text=9)]]


METHODS = {
    "paper": {},
    "released": {"semantics": "released"},
    "attention": {"saliency": "attention"},
    "attention of the layer before": {"saliency": "attention", "key_source": "previous"},
    "without clusters": {"saliency": "key_norm_only"},
    "features of the decoder": {"features": "hidden"},
    "original positions": {"positions": "original"},
    "filled floors": {"quota": "floor", "merge": "anchor_plus_mean"},
    "without Stage I": {"stage1_ratio": 1.0},
}


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


@pytest.mark.parametrize("name", tiny_qwen.FAMILIES)
def test_position_ids_of_three_axes(graphs: Any, recorder: Recorder, name: str) -> None:
    """Qwen2.5-VL is replayed; Qwen3-VL, which adds vision features inside its decoder, says that it is not."""
    model, method = tiny_qwen.tiny_qwen(name), ViTCoP(retention=0.3)
    samples = [tiny_qwen.prompt((4, 5), family=name, seed=s, text=5 + s) for s in range(3)]
    inputs = [tiny_qwen.batch(model, [sample]) for sample in samples]
    options: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with vitcop.prune(model, method):
        expected = [model.generate(**i, **options) for i in inputs]
    handle = graphs(model, method)
    got = [model.generate(**i, **options) for i in inputs]
    if name == "qwen3_vl":
        assert "vision features are added inside the decoder" in handle.report.notes[-1]
    else:
        assert recorder.events.count("replay") == 3, handle.report.notes
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.sequences, b.sequences)
        for x, y in zip(a.logits, b.logits, strict=True):
            torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)


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
    """Greedy, with decoding steps after each prefill."""
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


def test_buckets_and_layouts_have_graphs_of_their_own(llava: Any, graphs: Any, recorder: Recorder) -> None:
    model, method = llava(), ViTCoP(retention=0.3)
    calls = [
        (batch([prompt(1)]), 64), (batch([prompt(1, text=40)]), 64), (batch([prompt(1, text=50)]), 128),
        (batch([prompt(2)]), 64), (batch([prompt(1), prompt(1, seed=1)]), 64),
    ]  # fmt: skip
    expected = [eager(model, method, inputs)[0] for inputs, _ in calls]
    handle = graphs(model, method)
    with torch.no_grad():
        for (inputs, slots), want in zip(calls, expected, strict=True):
            output = model(**inputs, use_cache=True)
            torch.testing.assert_close(output.logits, want.logits, atol=TOLERANCE, rtol=0)
            assert handle.report.notes[-1] == f"cuda_graph: replayed for up to {slots} tokens"
    assert recorder.events.count("capture") == 4


def test_the_one_unused_for_longest_goes_first(
    llava: Any, graphs: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcop.graph.MAX_GRAPHS", 2)
    model = llava()
    graphs(model, ViTCoP(retention=0.3))
    a, b, c = (batch([prompt(1, text=t)]) for t in (5, 60, 120))
    did = []
    with torch.no_grad():
        for inputs in (a, b, a, c, a, b):
            recorder.events.clear()
            model(**inputs, use_cache=True)
            did.append([event for event in recorder.events if event in ("capture", "release")])
            assert len(recorder.graphs) <= 2
    assert did == [["capture"], ["capture"], [], ["release", "capture"], [], ["release", "capture"]]


def test_removal_frees_and_puts_the_forward_back(llava: Any, recorder: Recorder) -> None:
    model = llava()
    decoder = model.model.language_model
    assert "forward" not in vars(decoder)
    handle = Handle(model, ViTCoP(retention=0.3), recorder)
    assert "forward" in vars(decoder)
    with torch.no_grad():
        model(**batch([prompt(1)]), use_cache=True)
    assert handle._graphs is not None
    (captured,) = handle._graphs.graphs.values()
    held = [weakref.ref(t) for t in (captured.inputs.embeds, captured.outcome.cache.layers[0].keys)]
    del captured
    handle.remove()
    handle.remove()
    assert "forward" not in vars(decoder)
    assert recorder.graphs == [] and recorder.events[-1] == "release"
    gc.collect()
    assert all(ref() is None for ref in held)


def test_a_forward_of_the_callers_own_is_put_back(llava: Any, recorder: Recorder) -> None:
    model = llava()
    decoder = model.model.language_model
    own = decoder.forward
    decoder.forward = own
    try:
        Handle(model, ViTCoP(retention=0.3), recorder).remove()
        assert vars(decoder)["forward"] is own
    finally:
        del decoder.forward


def test_moved_weights_and_new_hooks_are_noticed(llava: Any, graphs: Any, recorder: Recorder) -> None:
    model, inputs = copy.deepcopy(llava()), batch([prompt(1)])
    method = ViTCoP(retention=0.3)
    handle = graphs(model, method)
    weight = model.model.language_model.layers[3].mlp.up_proj.weight
    with torch.no_grad():
        model(**inputs, use_cache=True)
        weight.data.mul_(2)  # in place: the graph reads the new values
        doubled = model(**inputs, use_cache=True).logits
        assert recorder.events.count("capture") == 1
        weight.data = weight.data.clone() / 2
        moved = model(**inputs, use_cache=True).logits
        assert recorder.events.count("capture") == 2
        seen: list[int] = []
        hook = model.model.language_model.layers[1].register_forward_hook(lambda *_: seen.append(1))
        model(**inputs, use_cache=True)
        assert recorder.events.count("capture") == 3 and seen
        hook.remove()
    handle.remove()
    torch.testing.assert_close(moved, eager(model, method, inputs)[0].logits, atol=TOLERANCE, rtol=0)
    weight.data.mul_(2)
    torch.testing.assert_close(doubled, eager(model, method, inputs)[0].logits, atol=TOLERANCE, rtol=0)


# -- where a graph would not do what the decoder does ------------------------------------------------------------------


def padded() -> dict[str, Any]:
    return batch([prompt(1), prompt(1, text=9)])


FALLBACKS: dict[str, Any] = {
    "padding": lambda m: m(**padded(), use_cache=True),
    "samples with different numbers of visual tokens": lambda m: m(
        input_ids=torch.tensor([prompt(1, text=5 + 18)[0], prompt(2)[0]]),
        pixel_values=torch.cat([prompt(1)[1], prompt(2)[1]]), use_cache=True,
    ),
    "use_cache=False": lambda m: m(**batch([prompt(1)]), use_cache=False),
    "argument output_hidden_states": lambda m: m(**batch([prompt(1)]), use_cache=True, output_hidden_states=True),
    "the cache holds earlier turns": lambda m: m(
        **{**batch([prompt(1)]), "attention_mask": torch.ones(1, 3 + len(prompt(1)[0]), dtype=torch.int64)},
        past_key_values=m(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_is_not_captured_runs_eagerly(llava: Any, graphs: Any, recorder: Recorder, reason: str) -> None:
    model, method = llava(), ViTCoP(retention=0.3)
    with vitcop.prune(model, method), torch.no_grad():
        expected = FALLBACKS[reason](model).logits
    handle = graphs(model, method)
    with torch.no_grad():
        assert torch.equal(FALLBACKS[reason](model).logits, expected)
        assert recorder.events == []
        assert handle.report.notes[-1].startswith(f"cuda_graph: this prefill ran eagerly ({reason}")
        model(**batch([prompt(1)]), use_cache=True)  # and the next one is replayed
    assert [note for note in handle.report.notes if "cuda_graph" in note] == [
        "cuda_graph: replayed for up to 64 tokens"
    ]


def test_gradients_training_and_autocast_run_eagerly(llava: Any, graphs: Any, recorder: Recorder) -> None:
    model, inputs = copy.deepcopy(llava()), batch([prompt(1)])
    handle = graphs(model, ViTCoP(retention=0.3))
    weight = model.model.multi_modal_projector.linear_2.weight
    (grad,) = torch.autograd.grad(model(**inputs, use_cache=True).logits.sum(), weight)
    assert (grad != 0).any()
    assert "gradients are enabled" in handle.report.notes[-1]
    with torch.no_grad():
        model.train()
        model(**inputs, use_cache=True)
        assert "training mode" in handle.report.notes[-1]
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            model(**inputs, use_cache=True)
        assert "autocast" in handle.report.notes[-1]
    assert recorder.events == []


def test_nothing_to_prune_and_text_alone_run_eagerly(llava: Any, graphs: Any, recorder: Recorder) -> None:
    model, inputs = llava(), batch([prompt(1)])
    handle = graphs(model, ViTCoP(retention=1.0))
    with torch.no_grad():
        got = model(**inputs, use_cache=True).logits
        assert "nothing to prune" in handle.report.notes[-1]
        model(input_ids=torch.tensor([[1, 2, 3]]))
        handle.remove()
        assert torch.equal(got, model(**inputs, use_cache=True).logits)
    assert recorder.events == []


def test_without_a_gpu_it_says_so(llava: Any) -> None:
    model, inputs = llava(), batch([prompt(1)])
    expected = eager(model, ViTCoP(retention=0.3), inputs)[0].logits
    with vitcop.prune(model, ViTCoP(retention=0.3), cuda_graph=True) as report, torch.no_grad():
        assert torch.equal(model(**inputs, use_cache=True).logits, expected)
    assert "the decoder is on cpu" in report.notes[-1]
    handle = vitcop.attach(model, ViTCoP(retention=0.3))
    assert handle._graphs is None  # off by default
    handle.remove()


# -- captures that fail ------------------------------------------------------------------------------------------------


class Reading(Method):
    """Reads a value on the host: fine eagerly, not in a graph."""

    def program(self, num_layers: int) -> Program:
        def select(ctx: Any) -> Plan:
            order = ctx.saliency.argsort(1)
            return Plan(order[:, : ctx.budget].sort().values if ctx.saliency.sum().item() < 1e9 else order)

        return Program([Stage("reading", 2, select)], lambda m: [m // 2])


class Listing(Method):
    """Copies a list from the host."""

    def program(self, num_layers: int) -> Program:
        return Program([Stage("listing", 1, lambda ctx: Plan(torch.tensor([[0, 3, 5, 6]])))], lambda m: [4])


@pytest.mark.parametrize("method", [Reading(), Listing()])
def test_a_capture_that_fails_leaves_the_model_usable(
    llava: Any, graphs: Any, recorder: Recorder, method: Method
) -> None:
    model, inputs = llava(), [batch([prompt(1, seed=s)]) for s in range(2)]
    expected = [eager(model, method, i)[0].logits for i in inputs]
    handle = graphs(model, method)
    with torch.no_grad():
        for i, want in zip(inputs, expected, strict=True):
            output = model(**i, use_cache=True)
            assert torch.equal(output.logits, want)
            assert "capture failed with HostRead" in handle.report.notes[-1]
            model(input_ids=torch.tensor([[11]]), past_key_values=output.past_key_values)
    assert recorder.events.count("capture") == 1  # it is not tried again
    assert handle._run is None


def test_an_error_of_the_method_is_raised_as_ever(llava: Any, graphs: Any, recorder: Recorder) -> None:
    class Broken(ViTCoP):
        broken = True

        def cluster(self, ctx: Any, center_ratio: float) -> Any:
            if self.broken:
                raise KeyError("broken")
            return super().cluster(ctx, center_ratio)

    model, method, inputs = llava(), Broken(retention=0.3), batch([prompt(1)])
    handle = graphs(model, method)
    with torch.no_grad():
        with pytest.raises(KeyError, match="broken"):
            model(**inputs, use_cache=True)
        assert handle._run is None and recorder.graphs == []
        method.broken = False
        model(**inputs, use_cache=True)
    assert len(handle.report.stages) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(llava: Any, name: str) -> None:
    """As above, with torch.cuda.CUDAGraph, and from several streams."""
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
            torch.testing.assert_close(output.logits, want.logits, atol=1e-3, rtol=0)
            assert_same_report(seen, want_report)
            for a, b in zip(cache.layers, want_cache.layers, strict=True):
                torch.testing.assert_close(a.keys, b.keys, atol=1e-3, rtol=0)


# -- the stand-in ------------------------------------------------------------------------------------------------------


def test_the_stand_in_has_the_semantics_of_a_cuda_graph() -> None:
    x, scale, backend = torch.tensor([1.0, 2.0, 3.0]), 2.0, Recorder()

    def work() -> tuple[Tensor, Tensor, Tensor]:
        y = x * scale
        z = y.clone()
        z[1:].add_(10)  # through a view, in place
        return y, z, z.view(3, 1)

    graph, (y, z, view) = backend.capture(work)
    assert y.isnan().all() and z.isnan().all()  # a capture computes nothing
    backend.replay(graph)
    assert y.tolist() == [2, 4, 6] and z.tolist() == [2, 14, 16] and view.flatten().tolist() == [2, 14, 16]
    kept = z.clone()
    x.copy_(torch.tensor([5.0, 6.0, 7.0]))
    scale = 100.0  # what Python decided stays
    backend.replay(graph)
    assert z.tolist() == [10, 22, 24] and kept.tolist() == [2, 14, 16]
    with pytest.raises(RuntimeError, match="item"), Graph():
        x[0].item()
    with pytest.raises(RuntimeError, match="a copy from the host"), Graph():
        torch.tensor([1.0])
