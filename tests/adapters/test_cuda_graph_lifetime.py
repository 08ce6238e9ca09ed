"""What a handle keeps of its graphs, how long, and when it makes new ones; and the stand-in for a CUDA graph."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from graph_recorder import Graph, Recorder
from replays import TOLERANCE, eager
from tiny_llava import batch, prompt
from torch import Tensor

from vitcop import ViTCoP
from vitcop.session import Handle


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
    monkeypatch.setattr("vitcop.engine.graph.MAX_GRAPHS", 2)
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
