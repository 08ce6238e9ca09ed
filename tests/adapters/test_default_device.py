"""`torch.set_default_device` and `set_default_dtype` change nothing: every tensor says where it is, and of what."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import Family

import vitcop
from vitcop.methods import METHODS

SHOWN: dict[str, Any] = {
    **METHODS,
    "released": lambda retention: vitcop.ViTCoP(retention=retention, semantics="released", positions="original"),
    "attention": lambda retention: vitcop.ViTCoP(retention=retention, saliency="attention", features="hidden"),
}


@contextlib.contextmanager
def defaults(device: str, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def run(model: Any, method: Any, per: str, inputs: Any) -> tuple[Any, Any]:
    with torch.no_grad(), vitcop.prune(model, method, budget_per=per) as report:
        logits = model(**inputs, use_cache=False).logits
    return logits, [[row.tolist() for row in stage.kept] for stage in report.stages]


@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.float64)])
def test_defaults_of_torch_change_nothing(family: Family, device: str, dtype: torch.dtype) -> None:
    """ "meta" stands for "cuda" here."""
    model, inputs = family.model(), family.batch([family.prompt(1), family.prompt(2), family.prompt(0)])
    with torch.no_grad():
        plain = model(**inputs, use_cache=False).logits
        try:
            with defaults(device, dtype):
                same = torch.equal(model(**inputs, use_cache=False).logits, plain)
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"the unpruned model does not run so: {str(error)[:60]}")
    for name, kind in SHOWN.items():
        method = kind(retention=0.55)
        for per in ("sample", "image") if name == "vitcop" else ("sample",):
            try:
                logits, kept = run(model, method, per, inputs)
            except (ValueError, NotImplementedError):
                continue  # small images, or what the family does not offer
            with defaults(device, dtype):
                got, again = run(model, method, per, inputs)
            assert again == kept, name
            assert not same or torch.equal(got, logits), name
