"""One tiny model per kind for all tests: attaching must leave no trace, so sharing it is a test as well."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from families import FAMILIES, Family, parameters
from graph_recorder import Recorder

from vitcop.methods import Method
from vitcop.session import Handle


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def llava() -> Callable[..., Any]:
    """llava(key_heads, attention, dtype): a shared tiny LLaVA of 8 layers."""
    return FAMILIES["llava"].model


@pytest.fixture(params=parameters())
def family(request: pytest.FixtureRequest) -> Family:
    """Every family that the tests of calls know."""
    return request.param


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
