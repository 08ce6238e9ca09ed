"""A fault in any call of a hook, in a layer, or from the keyboard: the next answer is right, the model is as before."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from families import Family, parameters
from fault_injection import Injected, Trial, answer, installed, snapshot
from graph_recorder import Recorder
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import LogitsProcessor

import vitcop
from vitcop.session import Handle

FOUR = ("llava", "llava_next", "qwen2_5_vl", "internvl")
LAYERS, OPTIONS = 4, {"retention": 0.3, "deep_layer": 3}


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """What has been there before is nothing that a fault could have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=parameters(*FOUR))
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def trial(family: Family, **options: Any) -> Trial:
    method = family.method(**OPTIONS)
    model, inputs = family.build(layers=LAYERS), family.batch([family.prompt(1)])
    return Trial(model, inputs, lambda model: vitcop.prune(model, method), **options)


def assert_survived(trial: Trial, faults: list[Any], error: type[BaseException]) -> None:
    wrong = {str(fault): said for fault in faults if (said := trial.run(fault, error("injected")))}
    assert wrong == {}


def test_the_injector_sees_everything_that_is_installed(family: Family) -> None:
    """Tower, model, decoder and those of its layers where a stage stands; a site that is not called proves nothing."""
    found = trial(family)
    uncalled = ("video", "init_continuous_batching")  # there is none, and it is refused
    assert all(count or any(name in site for name in uncalled) for site, count in found.calls.items()), found.calls
    assert sum("language_model.layers." in site for site in found.calls) >= 3
    assert sum(family.tower in site for site in found.calls) >= 3
    assert len(found.faults()) >= 30


def test_the_injector_notices_what_is_left_behind(family: Family) -> None:
    class Careless:
        def __enter__(self) -> None:
            self.handle = vitcop.attach(model, family.method(**OPTIONS))

        def __exit__(self, *_: Any) -> None:
            self.handle._hooks.pop(0)  # never taken out
            self.handle.remove()

    model = family.build(layers=LAYERS)
    found = Trial(model, family.batch([family.prompt(1)]), lambda model: Careless())
    assert "the model is not as before" in found.run(found.faults()[0], Injected())


def test_an_exception_in_every_call_of_every_hook(family: Family) -> None:
    found = trial(family)
    assert_survived(found, found.faults(), Injected)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_fault_inside_the_layers(family: Family, error: type[BaseException]) -> None:
    """Half-way through a layer of the decoder or the tower, where no hook of ours has the last word."""
    found = trial(family, within=True)
    parts = ("mlp", "self_attn", "attn", "attention")
    chosen = [f for f in found.faults() if f.site.split(".")[-2] in parts and f.after == (error is KeyboardInterrupt)]
    assert len(chosen) >= LAYERS * 2 * 3
    assert_survived(found, chosen[:: 3 if error is KeyboardInterrupt else 2], error)


@pytest.mark.family("llava")
def test_an_exception_in_every_call_where_prefills_are_replayed() -> None:
    """The decoder's forward is one more site; a capture that an exception has broken off is not tried again."""
    (family,) = parameters("llava")[0].values

    @contextmanager
    def replayed(model: nn.Module) -> Iterator[None]:
        recorder = Recorder()
        handle = Handle(model, family.method(**OPTIONS), recorder)
        try:
            yield
        finally:
            handle.remove()
            assert recorder.graphs == []

    found = Trial(family.build(layers=LAYERS), family.batch([family.prompt(1)]), replayed, tolerance=1e-4)
    assert any(site.endswith("language_model.forward") for site in found.calls)
    assert_survived(found, found.faults(), KeyboardInterrupt)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_interrupt_between_decoding_steps(family: Family, step: int) -> None:
    class Interrupt(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == step + 1:
                raise KeyboardInterrupt
            return scores

    model, inputs = family.build(layers=LAYERS), family.batch([family.prompt(1)])
    plain, before = answer(model, inputs), snapshot(model)
    with vitcop.prune(model, family.method(**OPTIONS)):
        pruned = answer(model, inputs)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, max_new_tokens=4, do_sample=False, logits_processor=[Interrupt()])
        assert torch.equal(answer(model, inputs), pruned)
    assert snapshot(model) == before
    assert torch.equal(answer(model, inputs), plain)


CHILD = """
import signal
import sys
import torch
from families import FAMILIES
from fault_injection import answer, snapshot
from transformers.generation.streamers import BaseStreamer
import vitcop

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are started with it ignored
torch.set_num_threads(1)
family = FAMILIES["llava"]
model, inputs = family.build(layers=4), family.batch([family.prompt(1)])
plain, before = answer(model, inputs), snapshot(model)

class Say(BaseStreamer):
    def put(self, value):
        print("step", flush=True)
    def end(self):
        pass

try:
    with vitcop.prune(model, family.method(retention=0.3, deep_layer=3)):
        model.generate(**inputs, max_new_tokens=100_000, do_sample=False, streamer=Say())
    sys.exit("it was not interrupted")
except KeyboardInterrupt:
    pass
assert snapshot(model) == before, "not as before"
assert torch.equal(answer(model, inputs), plain), "another answer"
print("as before")
"""


@pytest.mark.family("llava")
def test_control_c_while_decoding() -> None:
    """A real signal to a process of its own, wherever it happens to be."""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent, here.parents[1], here.parents[1] / "python")))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        for _ in range(5):
            assert child.stdout.readline() == "step\n"
        child.send_signal(signal.SIGINT)
        said, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors[-2000:]
    assert said.endswith("as before\n")


# -- while hooks go in and out --------------------------------------------------------------------------------------


def failing_at(call: int, function: Any) -> Any:
    """A function that is interrupted in one of its calls, before it has done anything."""
    calls = iter(range(10**9))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return interrupted


def test_an_interrupt_while_attaching(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model, method = family.build(layers=LAYERS), family.method(**OPTIONS)
    answer(model, family.batch([family.prompt(1)]))
    before, interrupts = snapshot(model), 0
    for call in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "register_forward_pre_hook", failing_at(call, nn.Module.register_forward_pre_hook))
            patch.setattr(nn.Module, "register_forward_hook", failing_at(call, nn.Module.register_forward_hook))
            try:
                vitcop.attach(model, method).remove()
            except KeyboardInterrupt:
                interrupts += 1
        assert snapshot(model) == before
    assert interrupts >= 4  # the tower's hooks, those of the decoder and of the model
    with vitcop.prune(model, method):
        assert snapshot(model) != before


def test_an_interrupt_while_removing(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block finishes what was interrupted, and so does calling `remove` again."""
    model, method = family.build(layers=LAYERS), family.method(**OPTIONS)
    answer(model, family.batch([family.prompt(1)]))
    before = snapshot(model)
    with vitcop.prune(model, method):
        hooks = len(installed(model, before))
    interrupts = 0
    for call in range(hooks):
        handle = vitcop.attach(model, method)
        with monkeypatch.context() as patch:
            patch.setattr(RemovableHandle, "remove", failing_at(call, RemovableHandle.remove))
            try:
                handle.remove()
            except KeyboardInterrupt:
                interrupts += 1
                with pytest.raises(ValueError, match="already has a pruning method attached"):
                    vitcop.attach(model, method)
                handle.remove()
        assert snapshot(model) == before
        pruning: AbstractContextManager[Any] = vitcop.prune(model, method)
        with monkeypatch.context() as patch:
            pruning.__enter__()
            patch.setattr(RemovableHandle, "remove", failing_at(call, RemovableHandle.remove))
            with pytest.raises(KeyboardInterrupt) if call < interrupts else nullcontext():
                pruning.__exit__(None, None, None)
        assert snapshot(model) == before
    assert interrupts >= hooks - 4  # LLaVA-NeXT replaces a method, which no handle of torch puts back
