"""Models at their true size with random weights, built from configurations: nothing is downloaded."""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_TOKEN, VOCAB, TEXT = 31999, 32000, 57


@dataclass(frozen=True)
class Spec:
    """A model and the prompt it gets."""

    name: str
    family: str  # config.model_type
    visual: int  # tokens that the image or video becomes, new-line tokens included
    width: int
    inner: int
    layers: int
    heads: int
    image: int = 336
    patch: int = 14
    frames: int = 0
    vision_width: int = 1024
    vision_layers: int = 24
    retentions: tuple[float, ...] = (1 / 3, 2 / 9, 1 / 9, 1 / 18)
    batches: tuple[int, ...] = ()

    @property
    def weight_bytes(self) -> int:
        layer = 4 * self.width**2 + 3 * self.width * self.inner
        return 2 * (self.layers * layer + 2 * VOCAB * self.width + self.vision_layers * 12 * self.vision_width**2)

    @property
    def activation_bytes(self) -> int:
        """Per sample, roughly: the cache, and what a layer and the tower hold at once."""
        n = self.visual + TEXT
        return 2 * n * (2 * self.layers * self.width + 6 * self.inner) + 64 * n * self.vision_width


def real_models() -> list[Spec]:
    # 672x672 in AnyRes: the base image and four tiles of 576 patches, and 48 new-line tokens.
    return [
        Spec("LLaVA-1.5-7B", "llava", 576, 4096, 11008, 32, 32, batches=(4, 8, 32)),
        Spec("LLaVA-NeXT-13B", "llava_next", 2928, 5120, 13824, 40, 40),
        Spec("LLaVA-NeXT-7B", "llava_next", 2928, 4096, 11008, 32, 32),
        Spec("LLaVA-NeXT-Video-7B", "llava_next_video", 4608, 4096, 11008, 32, 32, frames=32),
    ]


def tiny_models() -> list[Spec]:
    size = dict(width=64, inner=96, layers=6, heads=2, image=84, vision_width=32, vision_layers=3)
    return [
        Spec("tiny LLaVA", "llava", 36, **size, retentions=(1 / 2, 1 / 9), batches=(2,)),
        Spec("tiny LLaVA-NeXT", "llava_next", 36 + 144 + 12, **size, retentions=(1 / 9,)),
        Spec("tiny LLaVA-NeXT-Video", "llava_next_video", 4 * 9, frames=4, **size, retentions=(1 / 3,)),
    ]


def available(spec: Spec) -> str | None:
    """None, or why this model cannot be pruned here."""
    try:
        from vitcop.adapters import ADAPTERS
    except ImportError as error:
        return f"transformers: {error}"
    if spec.family not in ADAPTERS:
        return f"vitcop has no adapter for {spec.family}"
    return None


def build_model(spec: Spec, device: torch.device) -> nn.Module:
    """In bfloat16, with random weights made on the device."""
    import transformers as t

    heads = max(1, spec.vision_width // 64)
    vision = t.CLIPVisionConfig(
        hidden_size=spec.vision_width,
        intermediate_size=4 * spec.vision_width,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=heads,
        image_size=spec.image,
        patch_size=spec.patch,
    )
    text = t.LlamaConfig(
        hidden_size=spec.width,
        intermediate_size=spec.inner,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        vocab_size=VOCAB,
        max_position_embeddings=8192,
    )
    kinds = {"llava": "Llava", "llava_next": "LlavaNext", "llava_next_video": "LlavaNextVideo"}
    module = importlib.import_module("transformers")
    kind = kinds[spec.family]
    more: dict[str, Any] = (
        {} if spec.family == "llava" else {"image_grid_pinpoints": [[2 * spec.image, 2 * spec.image]]}
    )
    key = "image_token_id" if "image_token_id" in inspect.signature(t.LlavaConfig.__init__).parameters else None
    more[key or "image_token_index"] = IMAGE_TOKEN
    if spec.frames:
        more["video_token_id" if key else "video_token_index"] = IMAGE_TOKEN - 1
    config = getattr(module, f"{kind}Config")(vision_config=vision, text_config=text, **more)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = getattr(module, f"{kind}ForConditionalGeneration")(config)
    finally:
        torch.set_default_dtype(before)
    return model.to(device, torch.bfloat16).eval()


def prompt(spec: Spec, batch: int, device: torch.device) -> dict[str, Tensor]:
    """One image or video and 57 tokens of text a sample, as LLaVA-1.5 has them around an image."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, IMAGE_TOKEN - 1, (batch, TEXT), generator=generator)
    token = IMAGE_TOKEN - 1 if spec.frames else IMAGE_TOKEN
    ids = torch.cat([text[:, :35], torch.full((batch, spec.visual), token), text[:, 35:]], 1)
    side = spec.image

    def pixels(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    if spec.frames:
        inputs["pixel_values_videos"] = pixels(batch, spec.frames, 3, side, side)
    elif spec.family == "llava_next":
        inputs["pixel_values"] = pixels(batch, 5, 3, side, side)
        inputs["image_sizes"] = torch.tensor([[2 * side, 2 * side]] * batch)
    else:
        inputs["pixel_values"] = pixels(batch, 3, side, side)
    return inputs


def methods(retention: float) -> dict[str, Any]:
    """Name -> a method of that retention, or the reason why there is none."""
    from vitcop import ViTCoP

    found: dict[str, Any] = {"vitcop": ViTCoP(retention=retention)}
    module = importlib.import_module("vitcop.methods")
    for name in ("VisionZip", "FastV"):
        kind = getattr(module, name, None)
        if kind is None:
            found[f"{name}-like"] = "vitcop.methods has none"
            continue
        known = inspect.signature(kind).parameters
        try:
            found[f"{name}-like"] = kind(retention=retention) if "retention" in known else (name, kind)
        except (TypeError, ValueError) as error:
            found[f"{name}-like"] = str(error)
    return found
