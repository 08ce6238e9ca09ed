"""Compare a method with its published algorithm in plain loops."""

from collections.abc import Callable
from typing import Any

import slow_methods
import torch
from checks import TOLERANCE, generate
from slow_llava import Turn
from slow_methods import Choice
from tiny_llava import batch

from vitcop import Report


def assert_as_published(
    model: Any, method: Any, choices: dict[int, list[Choice]], prompts: list[Any], new: int = 2,
    budget_per: str = "sample", make: Callable[..., dict[str, Any]] = batch,
) -> Report:  # fmt: skip
    """Every sample of a padded batch is answered from the logits of the slow reference for it alone.

    `choices`: by a sample's visual tokens, what the reference does at each stage.
    """
    output, report = generate(model, method, make(prompts), new, budget_per=budget_per)
    got = torch.stack(output.logits, dim=1)
    for sample, (ids, pixels) in enumerate(prompts):
        answer = output.sequences[sample, -new:].tolist()
        stages = choices[report.visual_tokens[sample]] if report.visual_tokens[sample] else []
        stages = stages or choices[min(choices)]  # of a text: never called
        expected = slow_methods.logits(model, method, stages, Turn(ids, pixels), answer, budget_per == "image")
        torch.testing.assert_close(got[sample], expected, atol=TOLERANCE, rtol=0)
    return report
