"""Models for `vitcop run`: the two that come with vitcop, a local folder, or a checkpoint of the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

import torch

from .compare import Loaded, UserError, first_sentence
from .images import expanded

TINY = Path(__file__).parent / "assets" / "tiny"
TINY_NAME = "vitcop-tiny"
RANDOM = "random"
"""What `--model` calls the embedded LLaVA, of LLaVA-1.5's geometry and with random weights."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or a GPU if there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device: {name} cannot be used here ({first_sentence(error)})") from None
    return device


def load_embedded(device: torch.device, dtype: str | None, seed: int | None) -> Loaded:
    """The embedded LLaVA, made in code; nothing is read or downloaded."""
    from . import embedded

    model = embedded.build_model(embedded.SEED if seed is None else seed).to(
        device=device, dtype=DTYPES[dtype or "float32"]
    )
    return Loaded(model, embedded.build_processor(), embedded.NAME, random_weights=True)


def load_tiny(device: torch.device, dtype: str | None) -> Loaded:
    """vitcop-tiny, which answers questions about digits and shapes, without a download: studies/training/README.md."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    kind = DTYPES[dtype or "float32"]
    model: Any = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=kind, use_safetensors=True)
    processor = AutoProcessor.from_pretrained(TINY, trust_remote_code=False)
    return Loaded(model.to(device).eval(), processor, TINY_NAME, random_weights=False)


def load_checkpoint(name: str, device: torch.device, dtype: str | None) -> Loaded:
    """A Hugging Face checkpoint: a folder, or an id of the hub. Only safetensors are read, and none of its code is run.

    Raises UserError with one sentence when that cannot be done.
    """
    import huggingface_hub
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

    huggingface_hub.logging.set_verbosity_error()  # its retries; what is the matter is said in one sentence
    source, shown = _source(name)
    entries, _ = _read(lambda: PretrainedConfig.get_config_dict(source), shown)
    _check_type(entries.get("model_type"), shown)
    config = _read(lambda: AutoConfig.from_pretrained(source, trust_remote_code=False), shown)
    _check_files(source, shown)
    wanted = DTYPES[dtype] if dtype else _default_dtype(config, device)
    processor = _read(lambda: AutoProcessor.from_pretrained(source, trust_remote_code=False), shown)
    model = _read(
        lambda: AutoModelForImageTextToText.from_pretrained(
            source, config=config, dtype=wanted, use_safetensors=True, trust_remote_code=False
        ),
        shown,
    )
    try:
        model = model.to(device).eval()
    except torch.OutOfMemoryError:
        raise UserError(f"--model: {shown} does not fit on {device}; try --dtype bfloat16 or --device cpu") from None
    return Loaded(model, processor, name, random_weights=False)


def _source(name: str) -> tuple[str, str]:
    """What to hand to transformers and how to call it. A name that reads like a path must be a folder."""
    path = expanded(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"--model: the folder {name} has no config.json, so it is not a Hugging Face checkpoint")
        return str(path), name
    if path.is_file():
        raise UserError(f"--model: {name} is a file; expected the folder of a Hugging Face checkpoint, or a hub id")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name.strip("/ "):
        raise UserError(f"--model: No such folder: {name}")
    return name, name


def _check_type(model_type: str | None, shown: str) -> None:
    from .adapters import ADAPTERS

    if model_type not in ADAPTERS:
        known = ", ".join(sorted(ADAPTERS))
        raise UserError(
            f"--model: {shown} is a {model_type!r} model, which vitcop does not support; it supports {known}"
        )


def _check_files(source: str, shown: str) -> None:
    """Refuse what transformers would read although it was told to read safetensors."""
    from transformers.utils import cached_file

    errors = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")

    def found(name: str) -> Path | None:
        path = _read(lambda: cached_file(source, name, **dict.fromkeys(errors, False)), shown)
        return None if path is None else Path(path)

    if found("adapter_config.json") is not None:
        raise UserError(f"--model: {shown} has a PEFT adapter; merge it into the weights first")
    index = found("model.safetensors.index.json")
    if index is not None:
        for name in set(_read(lambda: json.loads(index.read_text())["weight_map"].values(), shown)):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(
                    f"--model: {shown} has its weights in {name}; expected safetensors files next to their index"
                )


def _default_dtype(config: Any, device: torch.device) -> torch.dtype:
    """The checkpoint's own; bfloat16 instead of float16 on a CPU, which is slow in float16."""
    stored = getattr(config, "dtype", None) or getattr(config.text_config, "dtype", None) or torch.float32
    if isinstance(stored, str):
        stored = DTYPES.get(stored, torch.float32)
    return torch.bfloat16 if device.type == "cpu" and stored == torch.float16 else stored


def _read(load: Any, shown: str) -> Any:
    """Call transformers, with one sentence for what can go wrong between here and the weights."""
    try:
        return load()
    except torch.OutOfMemoryError:
        raise UserError(f"--model: {shown} does not fit into memory; try --dtype bfloat16") from None
    except Exception as error:
        raise UserError(f"--model: {_why(error, shown)}") from None


def _why(error: Exception, shown: str) -> str:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    text = " ".join(str(link) for link in chain)
    if "GatedRepoError" in kinds:
        return f"{shown} is gated: accept its terms on huggingface.co and log in with `hf auth login`"
    if "HFValidationError" in kinds:
        return f"{shown} is neither a folder nor a hub id (owner/name)"
    if "RepositoryNotFoundError" in kinds:
        return f"the Hugging Face hub has no {shown} (or it is private and you are not logged in)"
    offline = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException"}
    if kinds & offline or "couldn't connect" in text or "offline" in text:
        return f"{shown} is not in the local cache and the Hugging Face hub cannot be reached"
    if "trust_remote_code" in text or "custom code" in text:
        return f"{shown} brings its own code, which vitcop does not run"
    if "safetensors" in text and "no file named" in text:
        return f"{shown} has no weights in safetensors format, the only one that vitcop reads"
    return f"{shown} cannot be loaded ({first_sentence(error)})"
