"""From the first decoder layer to the last, and while decoding, no tensor's value is read on the host."""

from typing import Any

import pytest
import torch
from families import Family
from torch.utils._python_dispatch import TorchDispatchMode

import vitcop
from vitcop import ViTCoP

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim", "bincount"}


class Watch(TorchDispatchMode):
    """Records the ops that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and isinstance(args[1], (list, tuple))
        if name in READS or (by_mask and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"semantics": "released"}, {"saliency": "attention"}, {"positions": "original"}],
    ids=lambda options: ",".join(options) or "paper",
)
def test_no_value_is_read(family: Family, alone: bool, options: dict[str, str]) -> None:
    model, watch = family.model(), Watch()
    decoder = model.model.language_model
    prompts = family.prompts()
    prompts = prompts[-1:] if alone else prompts
    inputs = family.batch(prompts)
    token = torch.full((len(prompts), 1), 11)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    with vitcop.prune(model, ViTCoP(retention=0.3, **options)) as report, torch.no_grad():  # type: ignore[arg-type]
        # From here on the layout has been read, and the decoder's mask, for which transformers reads, is made.
        first = decoder.layers[0].register_forward_pre_hook(lambda *_: watch.__enter__() and None, prepend=True)
        last = decoder.norm.register_forward_pre_hook(lambda *_: watch.__exit__(None, None, None))
        cache = model(**inputs, use_cache=True).past_key_values
        prefill = watch.count
        model(input_ids=token, attention_mask=mask, past_key_values=cache)
        first.remove()
        last.remove()
    assert len(report.stages) == 3
    assert watch.count > prefill > 100
    assert watch.found == []
