"""LLaVA-NeXT with pruned images: a budget for the base picture and the tiles together."""

from typing import Any

from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .layout import Layout, anyres
from .processor import PrunedProcessor
from .tower import PrunedTower


class Processor(PrunedProcessor, LlavaNextMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(Processor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class VitcopLlavaNextForConditionalGeneration(PrunedTower, LlavaNextForConditionalGeneration):
    def layouts(self, images: int, options: dict[str, Any]) -> list[Layout]:
        vision, pinpoints = self.config.vision_config, self.config.image_grid_pinpoints
        found = []
        for size in options["image_sizes"]:
            height, width = size.tolist()
            rows, columns = get_anyres_image_grid_shape((height, width), pinpoints, vision.image_size)
            found.append(anyres(height, width, rows, columns, vision.image_size // vision.patch_size))
        return found
