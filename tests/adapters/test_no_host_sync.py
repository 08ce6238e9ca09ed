"""From the first decoder layer to the decoder's last hidden state, and while decoding, no tensor's value is read."""

from typing import Any

import pytest
import torch
from host_reads import HostRead, NoHostReads, reads
from tiny_llava import batch, prompt
from torch.utils._python_dispatch import TorchDispatchMode

import vitcop
from vitcop import ViTCoP
from vitcop.methods import METHODS, Method, Plan, Program, Stage

# Every option of ViTCoP in every value, alone; what it is by default is in the first.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"semantics": "released"},
    "attention": {"saliency": "attention"},
    "key norms only": {"saliency": "key_norm_only"},
    "keys of the layer before": {"key_source": "previous"},
    "attention in the layer before": {"saliency": "attention", "key_source": "previous"},
    "mean of the heads": {"heads": "mean"},
    "anchor plus mean": {"merge": "anchor_plus_mean"},
    "floor": {"quota": "floor"},
    "released quota": {"quota": "released"},
    "original": {"positions": "original"},
    "released positions": {"positions": "released"},
    "hidden": {"features": "hidden"},
    "no Stage I": {"retention": 0.5, "stage1_ratio": 1},
    "no Stage III": {"deep_share": 1},
    "one cluster": {"center_ratio": 0.01},
    "more clusters than budget": {"center_ratio": 1.0},
    "shares of the budget": {"stage1_power": 0.7, "merged_share": 0.6, "deep_share": 1.0},
}
IMAGES = {"two": (2,), "ragged": (1, 2, 0, 1)}


class Watch(TorchDispatchMode):
    """Records the ops that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if reads(func, args):
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def run_guarded(model: Any, method: Method, images: tuple[int, ...]) -> tuple[NoHostReads, vitcop.Report]:
    """A prefill and two decoding steps that raise HostRead at the first read inside the decoder."""
    guard = NoHostReads()
    decoder = model.model.language_model
    inputs = batch([prompt(n, seed=k) for k, n in enumerate(images)])
    token, mask = torch.full((len(images), 1), 11), inputs["attention_mask"]
    with vitcop.prune(model, method) as report, torch.no_grad():
        # From here on the layout has been read, and the decoder's mask, for which transformers reads, is made. The
        # second hook comes after vitcop's own, which leaves the state on the cache and puts the output back in place.
        hooks = [
            decoder.layers[0].register_forward_pre_hook(lambda *_: guard.__enter__() and None, prepend=True),
            decoder.register_forward_hook(lambda *_: guard.__exit__(None, None, None)),
        ]
        try:
            cache = model(**inputs, use_cache=True).past_key_values
            for _ in range(2):
                mask = torch.cat([mask, torch.ones_like(token)], 1)
                model(input_ids=token, attention_mask=mask, past_key_values=cache)
        finally:
            if guard.active:  # an exception has flown
                guard.__exit__(None, None, None)
            for hook in hooks:
                hook.remove()
    return guard, report


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", VARIANTS)
def test_no_value_is_read(llava: Any, name: str, images: str) -> None:
    guard, report = run_guarded(llava(2), ViTCoP(**{"retention": 0.3, **VARIANTS[name]}), IMAGES[images])
    assert len(report.stages) == 3
    assert guard.count > 300


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", METHODS)
def test_no_method_reads_a_value(llava: Any, name: str, images: str) -> None:
    guard, report = run_guarded(llava(), METHODS[name](retention=0.55), IMAGES[images])  # type: ignore[call-arg]
    assert report.stages
    assert guard.count > 300


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_neither_do_masks(llava: Any, attention: str) -> None:
    run_guarded(llava(4, attention), ViTCoP(retention=0.3), IMAGES["ragged"])


def test_a_read_in_a_stage_is_found(llava: Any) -> None:
    class Reading(Method):
        def program(self, num_layers: int) -> Program:
            def select(ctx: Any) -> Plan:
                return Plan(torch.arange(int(ctx.budget + 0 * ctx.saliency.amax().item()))[None])

            return Program([Stage("reading", 2, select)], lambda m: [m // 2])

    with pytest.raises(HostRead, match="item"):
        run_guarded(llava(), Reading(), (1,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_is_not_waited_for(llava: Any, name: str) -> None:
    """The whole forward of the decoder, in prefill and decoding, under PyTorch's own check."""
    import copy

    model = copy.deepcopy(llava(2)).cuda()
    decoder = model.model.language_model
    inputs = {key: tensor.cuda() for key, tensor in batch([prompt(1), prompt(2)]).items()}
    token = torch.full((2, 1), 11, device="cuda")
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)

    def check(mode: str) -> Any:
        return lambda *_: torch.cuda.set_sync_debug_mode(mode)

    with vitcop.prune(model, ViTCoP(**{"retention": 0.3, **VARIANTS[name]})), torch.no_grad():
        model(**inputs, use_cache=True)  # kernels are compiled
        first = decoder.layers[0].register_forward_pre_hook(check("error"), prepend=True)
        last = decoder.register_forward_hook(check("default"))
        try:
            cache = model(**inputs, use_cache=True).past_key_values
            model(input_ids=token, attention_mask=mask, past_key_values=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            first.remove()
            last.remove()
