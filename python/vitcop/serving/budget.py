"""How many tokens an image becomes: the engine's number, and smaller ones of single requests."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitcop.methods import vision_only
from vitcop.methods.vision_only import VisionOnly

TOKENS = "vitcop_tokens"
"""In `mm_processor_kwargs` of a request: its tokens per image. Also the field that carries them to the worker."""
OPTIONS = ("merged_share", "stage1_ratio", "d_c", "tau")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What `{"vitcop": {"tokens": 64}}` in a model's configuration says.

    Raises ValueError for unknown keys, and as `VisionOnly` does.
    """

    tokens: int  # of an image, at most: the engine's memory is planned for that many
    options: Mapping[str, float]  # of VisionOnly

    @classmethod
    def of(cls, config: Any) -> "Budget":
        """From a Hugging Face configuration."""
        given = getattr(config, "vitcop", None)
        if not isinstance(given, Mapping) or not isinstance(given.get("tokens"), int):
            raise ValueError(f'vitcop: expected a mapping like {{"tokens": 64}}, got {given!r}')
        options = {name: value for name, value in given.items() if name != "tokens"}
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ValueError(f"vitcop: expected tokens and perhaps {', '.join(OPTIONS)}, got {', '.join(unknown)}")
        budget = cls(given["tokens"], options)
        budget.method(budget.tokens)
        return budget

    def method(self, tokens: int) -> VisionOnly:
        return VisionOnly(retain=tokens, **self.options)

    def asked(self, kwargs: Mapping[str, Any]) -> int:
        """Tokens per image of a request with these `mm_processor_kwargs`.

        Raises ValueError where it asks for more than the engine was started with.
        """
        tokens = kwargs.get(TOKENS, self.tokens)
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= self.tokens:
            raise ValueError(
                f"{TOKENS}: expected a number from 1 to {self.tokens}, what the engine was started with, got {tokens!r}"
            )
        return tokens

    def key(self) -> str:
        """What besides the number of tokens decides what an image becomes."""
        return repr((vision_only.VERSION, sorted(self.options.items())))
