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

from .base import Adapter  # noqa: E402
from .decoders import check_values  # noqa: E402
from .internvl import InternVLAdapter  # noqa: E402
from .llava import LlavaAdapter  # noqa: E402
from .llava_next import LlavaNextAdapter  # noqa: E402
from .llava_next_video import LlavaNextVideoAdapter  # noqa: E402
from .llava_onevision import LlavaOnevisionAdapter  # noqa: E402
from .qwen2_5_vl import Qwen25VLAdapter  # noqa: E402
from .qwen3_vl import Qwen3VLAdapter  # noqa: E402

ADAPTERS: dict[str, type[Adapter]] = {
    "internvl": InternVLAdapter,
    "llava": LlavaAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_next_video": LlavaNextVideoAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "qwen2_5_vl": Qwen25VLAdapter,
    "qwen3_vl": Qwen3VLAdapter,
}
"""By `config.model_type` of the module that owns the vision tower."""


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model, however it is wrapped. Raises NotImplementedError where there is none."""
    for module in model.modules():
        adapter = ADAPTERS.get(_model_type(module))
        # The class with a language model head has the same type; hasattr would meet its compatibility properties.
        if adapter is not None and adapter.tower in module._modules:
            found = adapter(module)
            found.embedding_scale = check_values(found)
            found.generators = [m for m in model.modules() if hasattr(type(m), "init_continuous_batching")]
            return found
    raise NotImplementedError(
        f"model: expected one with an adapter ({', '.join(sorted(ADAPTERS))}), got {_model_type(model)!r}; "
        "CONTRIBUTING.md says how to add one"
    )


def _model_type(module: nn.Module) -> str:
    return getattr(getattr(module, "config", None), "model_type", type(module).__name__)


__all__ = [
    "ADAPTERS",
    "Adapter",
    "InternVLAdapter",
    "LlavaAdapter",
    "LlavaNextAdapter",
    "LlavaNextVideoAdapter",
    "LlavaOnevisionAdapter",
    "Qwen3VLAdapter",
    "Qwen25VLAdapter",
    "adapter_for",
]
