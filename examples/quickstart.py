from transformers import AutoProcessor, LlavaForConditionalGeneration

import vitcop
from vitcop.compare import TINY_PICTURE, TINY_PROMPT
from vitcop.images import open_image
from vitcop.loading import TINY

model = LlavaForConditionalGeneration.from_pretrained(TINY, use_safetensors=True)
processor = AutoProcessor.from_pretrained(TINY, trust_remote_code=False)
message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TINY_PROMPT}]}
prompt = processor.apply_chat_template([message], add_generation_prompt=True)
inputs = processor(images=open_image(TINY_PICTURE), text=prompt, return_tensors="pt")

with vitcop.prune(model, vitcop.ViTCoP(retain=64)) as report:
    output = model.generate(**inputs, max_new_tokens=8)

print(TINY_PROMPT, processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
print("visual tokens:", report.visual_tokens[0], "->", [stage.tokens_out[0] for stage in report.stages])
print(f"KV cache: {report.kv_bytes_unpruned / 1024:.0f} KiB -> {report.kv_bytes / 1024:.0f} KiB")
