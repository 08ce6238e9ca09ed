"""Where a graph would not do what the decoder does, or cannot be captured, the prefill runs eagerly and says why."""

import copy
from typing import Any

import pytest
import torch
from graph_recorder import Recorder
from replays import eager
from tiny_llava import batch, prompt

import vitcop
from vitcop import ViTCoP
from vitcop.methods import Method, Plan, Program, Stage


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
    assert handle._now.run is None


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
        assert handle._now.run is None and recorder.graphs == []
        method.broken = False
        model(**inputs, use_cache=True)
    assert len(handle.report.stages) == 3
