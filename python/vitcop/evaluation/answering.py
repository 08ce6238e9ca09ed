"""Answer batches of prompts with pictures under a method. Knows nothing of lmms-eval."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import vitcop
from vitcop.adapters import adapter_for
from vitcop.engine.report import Report
from vitcop.methods.base import Method

# What Vicuna was trained on; checkpoints without a chat template of their own are asked with it.
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {question} ASSISTANT:"
)


@dataclass(frozen=True)
class Prompt:
    """One conversation, ready for the processor: its placeholders stand for the images and videos, in order."""

    text: str
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)

    @property
    def kind(self) -> tuple[bool, bool]:
        """Prompts of one kind go into one batch."""
        return bool(self.images), bool(self.videos)


class Answerer:
    """A model and its processor, pruned by `method` (None: not pruned)."""

    def __init__(self, model: Any, processor: Any, method: Method | None) -> None:
        self.model, self.processor, self.method = model, processor, method
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        self.kept: list[float] = []  # visual tokens of each prefill, mean of layers
        self.seen: list[float] = []  # visual tokens of each prefill before pruning
        self.report: Report | None = None  # of the latest batch with visual tokens

    def question(self, text: str, images: int = 0, videos: int = 0, template: str | None = None) -> str:
        """A question as the model was trained to be asked, its pictures in front where it does not place them itself.

        By the processor's chat template, else the tokenizer's, else Vicuna's prompt. template: Jinja text for messages
        of plain text, as lmms-eval's own models take it, instead of these.
        """
        image, video = (getattr(self.processor, f"{kind}_token", f"<{kind}>") for kind in ("image", "video"))
        placed = image in text or video in text
        if template is None and getattr(self.processor, "chat_template", None) is not None:
            media = [] if placed else [{"type": "image"}] * images + [{"type": "video"}] * videos
            return self.chat([{"role": "user", "content": [*media, {"type": "text", "text": text}]}])
        if not placed and images + videos:
            text = " ".join([image] * images + [video] * videos) + "\n" + text
        tokenizer = self.processor.tokenizer
        if template is None and tokenizer.chat_template is None:
            return VICUNA.format(question=text)
        message = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(
            message, chat_template=template, tokenize=False, add_generation_prompt=True
        )

    def chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """Messages whose contents are lists of parts, by the processor's chat template."""
        return self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Padded inputs of prompts of one kind, on the model's device and in its dtype."""
        texts = [prompt.text for prompt in prompts]
        images = [image for prompt in prompts for image in prompt.images]
        videos = [video for prompt in prompts for video in prompt.videos]
        given = {name: value for name, value in (("images", images), ("videos", videos)) if value}
        # The templates write the first token themselves where the tokenizer would add it again.
        bos = self.processor.tokenizer.bos_token
        special = {"add_special_tokens": False} if bos and all(text.startswith(bos) for text in texts) else {}
        inputs = self.processor(text=texts, padding=True, return_tensors="pt", **given, **special)
        device, dtype = self.model.device, self.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], stop: Sequence[str] = (), **options: Any) -> list[tuple[str, int]]:
        """Text and number of tokens of each answer; the text ends before the first of the `stop` strings."""
        inputs = self.encode(prompts)
        tokenizer = self.processor.tokenizer
        with self._pruned():
            output = self.model.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **options)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        lengths = (new != tokenizer.pad_token_id).sum(1).tolist()
        return [(cut(text, stop), length) for text, length in zip(texts, lengths, strict=True)]

    @torch.inference_mode()
    def losses(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[tuple[float, bool]]:
        """Mean negative log-likelihood of each continuation, and whether greedy decoding would say it.

        The prompt is read first and alone, as generate() does: what a method keeps must not depend on the answer.
        """
        inputs = self.encode(prompts)
        answers = [self._added(prompt.text, answer) for prompt, answer in zip(prompts, continuations, strict=True)]
        width = max(map(len, answers))
        device = inputs["input_ids"].device
        wanted = torch.zeros(len(answers), width, dtype=torch.int64, device=device)
        there = torch.zeros_like(wanted)
        for row, answer in enumerate(answers):
            wanted[row, : len(answer)] = torch.tensor(answer, device=device)
            there[row, : len(answer)] = 1
        mask = torch.cat([inputs["attention_mask"], there], dim=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)  # as generate() numbers a batch padded on the left
        length = inputs["input_ids"].shape[1]
        # Qwen's have three axes, of its own making.
        counted = adapter_for(self.model).text_positions(places) is not None

        def at(columns: slice) -> dict[str, Tensor]:
            return {"position_ids": places[:, columns]} if counted else {}

        with self._pruned():
            first = self.model(**inputs, **at(slice(length)), use_cache=True)
            logits = first.logits[:, -1:]
            if width > 1:
                rest = self.model(
                    input_ids=wanted[:, :-1], attention_mask=mask[:, :-1], past_key_values=first.past_key_values,
                    **at(slice(length, -1)),
                )  # fmt: skip
                logits = torch.cat([logits, rest.logits], dim=1)
        losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none")
        mean = (losses * there).sum(1) / there.sum(1)
        greedy = ((logits.argmax(-1) == wanted) | (there == 0)).all(1)
        return list(zip(mean.tolist(), greedy.tolist(), strict=True))

    def _added(self, prompt: str, continuation: str) -> list[int]:
        """Tokens that a continuation adds to a prompt."""
        before, after = (self.processor.tokenizer(text)["input_ids"] for text in (prompt, prompt + continuation))
        if len(after) <= len(before):
            raise ValueError(f"continuation: expected text that adds a token to the prompt, got {continuation!r}")
        return after[len(before) :]

    @contextlib.contextmanager
    def _pruned(self) -> Iterator[None]:
        if self.method is None:
            yield
            return
        with vitcop.prune(self.model, self.method) as report:
            yield
        if report.stages:
            self.report = report
            self.kept.append(report.mean_tokens)
            self.seen.append(sum(report.visual_tokens) / max(1, sum(n > 0 for n in report.visual_tokens)))


def cut(text: str, stop: Sequence[str]) -> str:
    ends = [at for word in stop if word and (at := text.find(word)) >= 0]
    return text[: min(ends)] if ends else text
