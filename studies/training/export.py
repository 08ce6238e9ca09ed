"""Write a trained vitcop-tiny as a checkpoint: `python -m studies.training.export --out DIR TRAINED.pt`."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from . import model as tiny
from .batches import BOS, EOS, IMAGE, INDEX, PAD
from .pictures import PATCH, SIDE
from .questions import WORDS

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endfor %}"
)


def tokenizer() -> Any:
    """A word is a token; capitals and punctuation are ignored, so that questions can be typed as people type them."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(INDEX, unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[?.,!:;]"), " ")])
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    assert fast.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<image>"]) == [PAD, BOS, EOS, IMAGE]
    assert len(fast) == len(WORDS)
    return fast


def processor() -> Any:
    """LLaVA's, for pictures of any size; `tiny.normalized` is what it does to pictures of the right size."""
    import transformers
    from transformers import LlavaProcessor

    # 5.x keeps the PIL one under its own name, 4.x has no other.
    clip = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    images = clip(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[tiny.MEAN] * 3,
        image_std=[tiny.STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def export(trained: Path, out: Path) -> None:
    """Weights in float16, as safetensors; the optimizer and the heads of the warm-up stay behind.

    In the files and under the names that transformers 4 and 5 both read, which are those of the llava-hf checkpoints.
    """
    model = tiny.build(0)
    model.load_state_dict(torch.load(trained, map_location="cpu", weights_only=True)["model"])
    model.half().config.dtype = torch.float16
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(out)
    weights = {released_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    made = processor()
    made.save_pretrained(out)
    made.image_processor.save_pretrained(out)  # transformers 5 puts it into processor_config.json alone
    path = out / "tokenizer_config.json"  # where transformers 5 writes a class that 4 does not know
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def released_name(name: str) -> str:
    """Of a parameter, as llava-hf checkpoints call it."""
    name = name.removeprefix("model.").replace("vision_model.", "")
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    head = name.startswith("lm_head.")
    return f"language_model.{name}" if head else name.replace("language_model.", "language_model.model.", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path, help="decoder.pt of training.train")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    options = parser.parse_args()
    export(options.trained, options.out)


if __name__ == "__main__":
    main()
