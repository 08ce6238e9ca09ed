"""A LLaVA under `vitcop.prune`: ask about a photograph, and see what was pruned.

python examples/model.py                                    vitcop-tiny, which knows digits and shapes
python examples/model.py llava-hf/llava-1.5-7b-hf cat.jpg   a real one
"""

import sys

from transformers import AutoProcessor, LlavaForConditionalGeneration

import vitcop
from vitcop.compare import PHOTOGRAPH_PROMPT, TINY_PICTURE, TINY_PROMPT
from vitcop.images import open_image
from vitcop.loading import TINY


def main() -> None:
    name, picture = sys.argv[1:] or (TINY, TINY_PICTURE)
    question = TINY_PROMPT if name == TINY else PHOTOGRAPH_PROMPT
    model = LlavaForConditionalGeneration.from_pretrained(name, dtype="auto", device_map="auto", use_safetensors=True)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    image = open_image(picture)

    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt").to(model.device, model.dtype)

    with vitcop.prune(model, vitcop.ViTCoP(retain=64)) as report:
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)

    print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    for stage in report.stages:
        print(f"{stage.name}, layer {stage.layer}: {stage.tokens_in[0]} -> {stage.tokens_out[0]} visual tokens")
    print(f"KV cache {report.kv_bytes_unpruned} -> {report.kv_bytes} bytes, CR_int {report.cr_int:.3f}")


if __name__ == "__main__":
    main()
