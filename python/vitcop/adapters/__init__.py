"""Model families, one file each. A new one is a file here and a line in `ADAPTERS`."""

import re

try:
    import transformers
except ImportError as error:
    raise ImportError("pruning a model needs transformers: pip install 'vitcop[hf]'") from error

OLDEST, BEFORE = (4, 57), (6, 0)


def check_version(version: str) -> None:
    """Raise ImportError outside the versions of transformers that the adapters are for."""
    if not OLDEST <= tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < BEFORE:
        oldest, before = (".".join(map(str, bound)) for bound in (OLDEST, BEFORE))
        raise ImportError(f"transformers: expected version {oldest} or newer and below {before}, got {version}")


check_version(transformers.__version__)

from torch import nn  # noqa: E402

from .base import Adapter, owner_of_vision_tower  # noqa: E402
from .llava import LlavaAdapter  # noqa: E402

ADAPTERS: dict[str, type[Adapter]] = {
    "llava": LlavaAdapter,
}
"""By `config.model_type` of the module that owns the vision tower."""


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model, however it is wrapped. Raises NotImplementedError where there is none."""
    owner = owner_of_vision_tower(model)
    config = getattr(model if owner is None else owner, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    if owner is None or model_type not in ADAPTERS:
        raise NotImplementedError(
            f"model: expected one with an adapter ({', '.join(sorted(ADAPTERS))}), got {model_type!r}; CONTRIBUTING.md "
            "says how to add one"
        )
    return ADAPTERS[model_type](owner)


__all__ = ["ADAPTERS", "Adapter", "LlavaAdapter", "adapter_for"]
