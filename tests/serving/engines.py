"""An engine of vLLM, and the Hugging Face model whose answers it must give."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import vitcop
from vitcop import VisionOnly
from vitcop.loading import TINY

SHAPES = TINY.parent / "shapes.png"
QUESTIONS = (
    "what color is the 5",
    "what is above the white ring",
    "how many shapes",
    "list everything",
    "is there a red 7",
    "where is the ring",
)
SIZES = ((200, 120), (90, 230), (300, 100))
TOLERANCE = 2e-3
"""Of log-probabilities in float32, whose sums run in another order: over 12 layers, 1e-5 to 3e-4 are seen."""


@functools.cache
def picture(number: int) -> Image.Image:
    """The shipped picture of shapes, turned, mirrored and in other colours: 48 different ones, and the same squeezed
    into other shapes."""
    image = Image.open(SHAPES).convert("RGB")
    if number >= 48:
        image = image.resize(SIZES[number // 48 - 1])
    image = image.rotate(90 * (number % 4))
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number // 4 % 2 else image
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)]
    bands = image.split()
    return Image.merge("RGB", [bands[i] for i in orders[number // 8 % 6]])


@dataclass(frozen=True)
class Ask:
    """A question about pictures (their numbers), each of which becomes `tokens` tokens; None: what the engine says."""

    question: str
    pictures: tuple[int, ...] = (0,)
    tokens: int | None = None

    @property
    def text(self) -> str:
        return "<image> " * len(self.pictures) + self.question

    def images(self) -> list[Image.Image]:
        return [picture(number) for number in self.pictures]


@dataclass(frozen=True)
class Answer:
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: Tensor  # [answer, vocabulary]
    cached: int = 0  # tokens of the prompt that the prefix cache had


class Engine:
    """`vllm.LLM` in float32, its logprobs of the whole vocabulary."""

    def __init__(self, model: Path, tokens: int | None, **options: Any) -> None:
        from vllm import LLM

        overrides = {} if tokens is None else {"hf_overrides": {"vitcop": {"tokens": tokens}}}
        self.llm = LLM(
            str(model),
            dtype="float32",
            seed=0,
            enforce_eager=True,
            max_logprobs=-1,
            kv_cache_memory_bytes=64 << 20,
            **{"max_model_len": 512, "max_num_seqs": 16, "limit_mm_per_prompt": {"image": 2}, **overrides, **options},
        )

    def ask(self, *asked: Ask, new: int = 4, images: Sequence[Any] | None = None) -> list[Answer]:
        """All at once; `images`: given as they are, instead of pictures."""
        from vllm import SamplingParams

        prompts: list[Any] = []
        for number, ask in enumerate(asked):
            data = ask.images() if images is None else images[number]
            options = {} if ask.tokens is None else {"vitcop_tokens": ask.tokens}
            prompt: dict[str, Any] = {"prompt": ask.text}
            if ask.pictures:
                prompt |= {"multi_modal_data": {"image": data}, "mm_processor_kwargs": options}
            prompts.append(prompt)
        sampling = SamplingParams(temperature=0, max_tokens=new, logprobs=-1, ignore_eos=True)
        found = []
        for output in self.llm.generate(prompts, sampling, use_tqdm=False):
            said = output.outputs[0]
            rows = [[row[token].logprob for token in sorted(row)] for row in said.logprobs]
            prompt_ids = tuple(output.prompt_token_ids)
            found.append(Answer(prompt_ids, tuple(said.token_ids), torch.tensor(rows), output.num_cached_tokens or 0))
        return found

    def forget(self) -> None:
        """Empty the caches of prefixes and images."""
        self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


class HuggingFace:
    """The same checkpoint in transformers, pruned by `vitcop.prune`."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None  # answers of a given length, as with ignore_eos
        self.processor: Any = AutoProcessor.from_pretrained(model)

    def inputs(self, ask: Ask) -> Any:
        images = ask.images() or None
        return self.processor(images=images, text=ask.text, return_tensors="pt")

    def ask(self, ask: Ask, new: int = 4) -> Answer:
        inputs = self.inputs(ask)
        options = dict(max_new_tokens=new, do_sample=False, output_logits=True)
        with vitcop.prune(self.model, VisionOnly(retain=ask.tokens or 10**6), budget_per="image"):
            output = self.model.generate(**inputs, **options, return_dict_in_generate=True)
        logits = torch.stack(output.logits)[:, 0].float().log_softmax(-1)
        ids = output.sequences[0, inputs["input_ids"].shape[1] :]
        return Answer(tuple(inputs["input_ids"][0].tolist()), tuple(ids.tolist()), logits)


def assert_same(got: Answer, expected: Answer) -> None:
    """The same words from the same distributions."""
    assert got.ids == expected.ids
    torch.testing.assert_close(got.logprobs, expected.logprobs, atol=TOLERANCE, rtol=0)
