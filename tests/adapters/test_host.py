"""What pruning costs the host, counted: frames of Python that are vitcop's, and ops that the dispatcher sees."""

import sys
from typing import Any

import torch
from tiny_llava import batch, prompt
from torch.utils._python_dispatch import TorchDispatchMode

import vitcop
from vitcop import ViTCoP


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def frames_of(work: Any) -> list[str]:
    """Functions of vitcop that `work()` calls."""
    found: list[str] = []

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and "/vitcop/" in frame.f_code.co_filename:
            found.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


@torch.no_grad()
def test_a_decoding_step_dispatches_no_op_more_and_runs_nothing_in_a_layer(llava: Any) -> None:
    model, inputs = llava(), batch([prompt(1)])
    mask = torch.cat([inputs["attention_mask"], torch.ones(1, 1, dtype=torch.int64)], 1)
    step: dict[str, Any] = {"input_ids": torch.tensor([[11]]), "attention_mask": mask}

    def ops(cache: Any) -> int:
        with Ops() as seen:
            model(**step, past_key_values=cache)
        return seen.count

    plain = ops(model(**inputs, use_cache=True).past_key_values)
    with vitcop.prune(model, ViTCoP(retention=0.3)):
        cache = model(**inputs, use_cache=True).past_key_values
        assert all("forward" not in vars(layer) and not layer._forward_pre_hooks for layer in layers_of(model))
        called: list[str] = frames_of(lambda: model(**step, past_key_values=cache))
        assert ops(model(**inputs, use_cache=True).past_key_values) == plain
    assert not [name for name in called if name.startswith(("Run", "Stand", "Sequence"))]
    assert len(called) <= 22, called  # of the model's and the decoder's hooks, and the cache's length; none per layer


@torch.no_grad()
def test_a_prefill_sees_the_layers_of_stages_alone(llava: Any) -> None:
    model, inputs = llava(), batch([prompt(1)])
    with vitcop.prune(model, ViTCoP(retention=0.3)):
        model(**inputs)
        called = frames_of(lambda: model(**inputs))
    assert called.count("Run._layer") == 5  # three stages, two of them not at the first layer
    assert called.count("Layouts._make") == 0  # images like those of a prompt before


def layers_of(model: Any) -> Any:
    return model.model.language_model.layers
