"""Threads that run one model at the same time, one standing still where it hurts most while the other does its work."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from checks import OLD
from families import Family, parameters
from fault_injection import answer, snapshot
from torch import nn

import vitcop

OPTIONS = {"retention": 0.3, "deep_layer": 3}
WAIT = 60  # seconds, until a test fails instead of hanging


@pytest.fixture(params=parameters("llava", "llava_next", "qwen2_5_vl", "internvl"))
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def model_of(family: Family) -> Any:
    model = family.build(layers=4)
    answer(model, family.batch([family.prompt(1)]))  # transformers installs hooks of its own at the first forward
    return model


def prompts(family: Family, number: int) -> list[dict[str, Any]]:
    """Of one geometry: Qwen's models keep position offsets of the latest prompt, pruned or not."""
    if OLD and number > 1 and not family.counts_tokens:
        pytest.skip("Qwen's models of transformers 4.57 mix the positions of two threads up, pruned or not")
    return [family.batch([family.prompt(1, seed=seed)]) for seed in range(number)]


@contextmanager
def stopped_in(module: nn.Module, work: Callable[[], Any]) -> Iterator[Any]:
    """`work` in a thread of its own that stands still in its first call of `module`; a future of what it returns."""
    reached, go = threading.Event(), threading.Event()

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        if threading.current_thread() is not threading.main_thread() and not reached.is_set():
            reached.set()
            assert go.wait(WAIT)

    hook = module.register_forward_hook(stop)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        assert reached.wait(WAIT)
        try:
            yield future
        finally:
            hook.remove()
            go.set()


@pytest.mark.parametrize("where", ["tower", "decoder layer 1", "decoder layer 3"])
def test_another_thread_in_the_middle_of_a_prefill(family: Family, where: str) -> None:
    model, (first, second) = model_of(family), prompts(family, 2)
    inner = model.model
    module = getattr(inner, family.tower) if where == "tower" else inner.language_model.layers[int(where[-1])]
    before = snapshot(model)
    with vitcop.prune(model, family.method(**OPTIONS)) as report:
        expected = [answer(model, inputs) for inputs in (first, second)]
        stages = [stage.kept for stage in report.stages]
        with stopped_in(module, lambda: answer(model, first)) as future:
            assert torch.equal(answer(model, second), expected[1])
            assert all(torch.equal(a.kept, b) for a, b in zip(report.stages, stages, strict=True))
        assert torch.equal(future.result(WAIT), expected[0])
        assert len(report.stages) == 3
    assert snapshot(model) == before


def test_threads_all_at_once(family: Family) -> None:
    model, inputs = model_of(family), prompts(family, 4)
    with vitcop.prune(model, family.method(**OPTIONS)), ThreadPoolExecutor(4) as pool:
        expected = [answer(model, i) for i in inputs]
        for _ in range(2):
            got = list(pool.map(lambda i: answer(model, i), inputs))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_an_exception_in_one_thread_is_its_own(family: Family) -> None:
    model, (first, second) = model_of(family), prompts(family, 2)
    layer = model.model.language_model.layers[2]

    def fail(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError("in the thread")

    with vitcop.prune(model, family.method(**OPTIONS)):
        expected = answer(model, second)
        hook = layer.register_forward_pre_hook(fail)
        with stopped_in(model.model.language_model.layers[1], lambda: answer(model, first)) as future:
            assert torch.equal(answer(model, second), expected)
        with pytest.raises(torch.OutOfMemoryError):
            future.result(WAIT)
        hook.remove()
        assert torch.equal(answer(model, second), expected)


def test_another_thread_enters_while_one_is_generating(family: Family) -> None:
    model, other, (inputs,) = model_of(family), model_of(family), prompts(family, 1)
    method = family.method(**OPTIONS)
    plain = answer(other, inputs)
    with vitcop.prune(model, method):
        expected = answer(model, inputs)
        with stopped_in(model.model.language_model.layers[2], lambda: answer(model, inputs)) as future:
            with pytest.raises(ValueError, match="already has a pruning method"), vitcop.prune(model, method):
                pass
            with vitcop.prune(other, method):
                assert torch.equal(answer(other, inputs), expected)
        assert torch.equal(future.result(WAIT), expected)
    assert torch.equal(answer(other, inputs), plain)


def test_only_one_of_many_threads_attaches(family: Family) -> None:
    model, method = model_of(family), family.method(**OPTIONS)
    before, start = snapshot(model), threading.Barrier(8)

    def attach(_: int) -> Any:
        start.wait(WAIT)
        try:
            return vitcop.attach(model, method)
        except ValueError:
            return None

    with ThreadPoolExecutor(8) as pool:
        handles = [handle for handle in pool.map(attach, range(8)) if handle is not None]
    assert len(handles) == 1
    handles[0].remove()
    assert snapshot(model) == before


@pytest.mark.parametrize("where", ["decoder layer 1", "decoder layer 2", "a decoding step"])
def test_removed_under_a_thread_that_is_generating(family: Family, where: str) -> None:
    """It gets an error rather than an answer from half-pruned states; the model is as before. A step without padding,
    in which nothing of vitcop runs, comes to its end, and the next one is refused."""
    model, (inputs,) = model_of(family), prompts(family, 1)
    before, plain = snapshot(model), answer(model, inputs)
    handle = vitcop.attach(model, family.method(**OPTIONS))
    if where == "a decoding step":
        cache = model(**inputs, use_cache=True).past_key_values
        last = inputs["input_ids"][:, -1:]
        with stopped_in(model.model.language_model.layers[0], lambda: model(last, past_key_values=cache)) as future:
            handle.remove()
        future.result(WAIT)
        with pytest.raises(RuntimeError, match="only under pruning"):
            model(last, past_key_values=cache)
    else:
        layer = model.model.language_model.layers[int(where[-1])]
        with stopped_in(layer, lambda: answer(model, inputs)) as future:
            handle.remove()
        with pytest.raises(RuntimeError):
            future.result(WAIT)
    assert snapshot(model) == before
    assert torch.equal(answer(model, inputs), plain)
