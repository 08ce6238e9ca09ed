"""What lmms-eval finds through the entry point group `lmms_eval.models`."""

from typing import Any


def manifests() -> list[Any]:
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            model_id="vitcop_llava_hf",
            simple_class_path="vitcop.evaluation.lmms.VitcopLlavaHf",
            chat_class_path="vitcop.evaluation.lmms.VitcopLlavaHfChat",
        )
    ]
