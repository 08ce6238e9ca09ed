"""LLaVA-1.5 with pruned images."""

from typing import Any

from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .layout import Layout, one_tile
from .processor import PrunedProcessor
from .tower import PrunedTower


class Processor(PrunedProcessor, LlavaMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(Processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class VitcopLlavaForConditionalGeneration(PrunedTower, LlavaForConditionalGeneration):
    def layouts(self, images: int, options: dict[str, Any]) -> list[Layout]:
        vision = self.config.vision_config
        return [one_tile(vision.image_size // vision.patch_size)] * images
