"""The prompt's side: as many placeholders as an image has tokens, and cache keys that know how many.

The number is written once, into a field of each image. The placeholders and the worker both read it there, so they
cannot disagree whatever caches, batches or requests with other numbers are in between.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement

from .budget import TOKENS, Budget

KEY = "vitcop_key"


class PrunedProcessor:
    """Mixed in before a multimodal processor of vLLM whose visual tokens are images alone."""

    info: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.info.ctx.model_config
        self.budget = Budget.of(config.hf_config)
        if TOKENS in (config.get_multimodal_config().mm_processor_kwargs or {}):
            raise ValueError(
                f"--mm-processor-kwargs: expected no {TOKENS}, which single requests have, got it for the engine: "
                '--hf-overrides \'{"vitcop": {"tokens": ...}}\' is the place'
            )

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """With the number of tokens, and what else decides what they are, among the options that caches hash."""
        options = dict(inputs.hf_processor_mm_kwargs)
        options |= {TOKENS: self.budget.asked(options), KEY: self.budget.key()}
        return super().apply(  # type: ignore[misc]
            dataclasses.replace(inputs, hf_processor_mm_kwargs=options), *args, **kwargs
        )

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        known = {name: value for name, value in hf_kwargs.items() if name not in (TOKENS, KEY)}
        return super()._call_hf_processor(hf_data, known)  # type: ignore[misc]

    def _postprocess_hf_mm_data(
        self, mm_data: Any, hf_processor_mm_kwargs: Mapping[str, Any], processed_data: Any
    ) -> Any:
        made = super()._postprocess_hf_mm_data(mm_data, hf_processor_mm_kwargs, processed_data)  # type: ignore[misc]
        if "pixel_values" in made:  # ready-made embeddings are served as they come
            made[TOKENS] = torch.full((len(made["pixel_values"]),), hf_processor_mm_kwargs[TOKENS])
        return made

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**fields, TOKENS: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        placeholder = self.info.get_hf_config().image_token_index

        def tokens(number: int) -> list[int]:
            images = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            if isinstance(images, ImageEmbeddingItems):
                return [placeholder] * images.get_feature_size(number)
            size = images.get_image_size(number)
            whole = self.info.get_num_image_tokens(image_width=size.width, image_height=size.height)
            return [placeholder] * min(whole, int(out_mm_kwargs["image"][number][TOKENS].data))

        return [PromptReplacement(modality="image", target=[placeholder], replacement=tokens)]
