"""Comparisons with the slow reference."""

from typing import Any

import slow_llava
import torch
import transformers
from torch import Tensor

import vitcop

# Logits here have a standard deviation of about 2.5; both sides are float32 in another order of summation.
TOLERANCE = 2e-4
NEW = 4
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
OLD = VERSION < (5, 0)


def generate(
    model: Any, method: Any, inputs: dict[str, Any], new: int = NEW, budget_per: str = "sample", **options: Any
) -> tuple[Any, vitcop.Report]:
    options = {"do_sample": False, "min_new_tokens": new, **options}
    with vitcop.prune(model, method, budget_per=budget_per) as report:
        output = model.generate(
            **inputs,
            max_new_tokens=new,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return output, report


def expected_logits(
    model: Any, method: Any, turns: list[slow_llava.Turn], answer: list[int], kept: list[Any] | None = None
) -> Tensor:
    """[len(answer), vocabulary] logits that each token of `answer` is drawn from."""
    with torch.no_grad():
        everything = slow_llava.logits(model, method, turns, answer, kept)
    return everything[-len(answer) - 1 : -1]


def assert_answers(model: Any, method: Any, prompts: list[Any], output: Any, tolerance: float = TOLERANCE) -> None:
    """Every step's logits of a generated batch are those of the reference, sample by sample."""
    got = torch.stack(output.logits, dim=1)  # [B, steps, vocabulary]
    for sample, (ids, pixels) in enumerate(prompts):
        answer = output.sequences[sample, -got.shape[1] :].tolist()
        expected = expected_logits(model, method, [slow_llava.Turn(ids, pixels)], answer)
        torch.testing.assert_close(got[sample], expected, atol=tolerance, rtol=0)
