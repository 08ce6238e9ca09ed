"""LLaVA and its kin under any method, as models of lmms-eval: `--model vitcop_llava_hf`.

    --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=vitcop,retain=64,semantics=paper

`method` is a name of `vitcop.methods.METHODS`, or "none"; every argument that is not one of the model's own is one of
the method's. Unlike lmms-eval's own `llava_hf` any batch size works, and prompts may be of several images or none.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL.Image import Image
from tqdm import tqdm

from vitcop.loading import load_checkpoint

from .answering import Answerer, Prompt
from .settings import make_method

T = TypeVar("T")


class VitcopLlavaHf(lmms):
    """Simple tasks: a question and its pictures.

    Args:
        pretrained: folder or hub id. method: see above; further arguments go to it.
        batch_size: any. device: None: a GPU if there is one; under accelerate the process' own.
        dtype: "float32", "bfloat16", "float16"; None: the checkpoint's. attn_implementation: of transformers.
        chat_template: Jinja text instead of the checkpoint's own. max_frames_num: frames read of a video.
    """

    is_simple = True

    def __init__(
        self, pretrained: str, method: str = "vitcop", batch_size: int | str = 1, device: str | None = None,
        dtype: str | None = None, attn_implementation: str | None = None, chat_template: str | None = None,
        max_frames_num: int = 32, max_batch_size: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        place = self.accelerator.device if device is None or self._world_size > 1 else torch.device(device)
        loaded = load_checkpoint(pretrained, place, None if dtype in (None, "auto") else dtype)
        if attn_implementation is not None:
            loaded.model.set_attn_implementation(attn_implementation)
        self.answerer = Answerer(loaded.model, loaded.processor, make_method(method, **options))
        self.batch_size, self.max_frames, self.chat_template = int(batch_size), int(max_frames_num), chat_template

    @property
    def model(self) -> Any:
        return self.answerer.model

    @property
    def config(self) -> Any:
        return self.model.config

    # -- requests ----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        # The harness owns the dictionaries of options and shares them between requests: copy.
        options = [dict(self._options_of(request)) for request in requests]
        prompts = [self._prompt(request) for request in requests]
        results: list[GenerationResult | None] = [None] * len(requests)
        # The longest first: what does not fit into memory fails at once.
        keys = [(prompt.kind, repr(sorted(o.items(), key=str))) for prompt, o in zip(prompts, options, strict=True)]
        batches = list(in_batches(keys, self.batch_size, size=lambda i: len(prompts[i].text)))
        for batch in self._progress(batches):
            arguments = generation_arguments(options[batch[0]])
            stop = arguments.pop("stop")
            answers = self.answerer.generate([prompts[i] for i in batch], stop, **arguments)
            for i, (text, length) in zip(batch, answers, strict=True):
                results[i] = GenerationResult(text=text, token_counts=TokenCounts(output_tokens=length))
                self.cache_hook.add_partial("generate_until", (prompts[i].text, options[i]), text)
        return [result for result in results if result is not None]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The mean loss of each continuation, which is what lmms-eval compares, and whether it is the greedy one.

        A bare pair would be turned into a string by lmms-eval 0.7; what is wrapped as a result is handed on.
        """
        prompts, continuations = [], []
        for request in requests:
            context, target, visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            prompts.append(self._asked(context, visual(document) or []))
            continuations.append(target if isinstance(target, str) else str(target(document)))
        results: list[GenerationResult | None] = [None] * len(requests)
        keys = [prompt.kind for prompt in prompts]
        batches = list(in_batches(keys, self.batch_size, size=lambda i: len(prompts[i].text)))
        for batch in self._progress(batches):
            losses = self.answerer.losses([prompts[i] for i in batch], [continuations[i] for i in batch])
            for i, result in zip(batch, losses, strict=True):
                results[i] = GenerationResult(text=result)
        return [result for result in results if result is not None]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("vitcop_llava_hf: expected tasks of one round, got one of several")

    def _options_of(self, request: Instance) -> dict[str, Any]:
        return request.args[1]

    def _prompt(self, request: Instance) -> Prompt:
        context, _, visual, doc_id, task, split = request.args
        return self._asked(context, visual(self.task_dict[task][split][doc_id]) or [])

    def _asked(self, text: str, visuals: Sequence[Any]) -> Prompt:
        images, videos = self._media(visuals)
        text = self.answerer.question(text, len(images), len(videos), self.chat_template)
        return Prompt(text, images, videos)

    def _media(self, visuals: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        images = [visual.convert("RGB") for visual in visuals if isinstance(visual, Image)]
        videos = [self._video(visual) for visual in visuals if not isinstance(visual, Image)]
        return images, videos

    def _video(self, path: Any) -> Any:
        from transformers.video_utils import load_video

        return load_video(path, num_frames=self.max_frames)[0]

    def _progress(self, batches: list[T]) -> Iterable[T]:
        return tqdm(batches, desc="answering", unit="batch", disable=self.rank != 0)


class VitcopLlavaHfChat(VitcopLlavaHf):
    """Tasks that come as messages, written out by the processor's own chat template."""

    is_simple = False

    def _options_of(self, request: Instance) -> dict[str, Any]:
        return request.args[2]

    def _prompt(self, request: Instance) -> Prompt:
        _, to_messages, _, doc_id, task, split = request.args
        messages = to_messages(self.task_dict[task][split][doc_id])
        visuals, text = [], []
        for message in messages:
            content = []
            for part in message["content"]:
                if part["type"] in ("image", "video"):
                    visuals.append(part["url"])
                    content.append({"type": part["type"]})
                else:
                    content.append(part)
            text.append({**message, "content": content})
        processor = self.answerer.processor
        if self.chat_template is not None or getattr(processor, "chat_template", None) is None:
            words = "\n".join(p["text"] for m in text for p in m["content"] if p["type"] == "text")
            return self._asked(words, visuals)
        return Prompt(self.answerer.chat(text), *self._media(visuals))


def in_batches(keys: Sequence[Hashable], limit: int, size: Callable[[int], int]) -> Iterable[list[int]]:
    """Indices in batches of at most `limit` whose keys are equal, large ones first."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    for group in groups.values():
        group.sort(key=lambda i: (-size(i), i))
        for start in range(0, len(group), limit):
            yield group[start : start + limit]


def generation_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """What lmms-eval's tasks ask for, as arguments of `Answerer.generate`."""
    until = options.get("until") or []
    temperature = options.get("temperature") or 0
    arguments = {
        "stop": [until] if isinstance(until, str) else list(until),
        "max_new_tokens": options.get("max_new_tokens", 1024),
        "num_beams": options.get("num_beams") or 1,
        "do_sample": temperature > 0,
    }
    if temperature > 0:
        arguments |= {"temperature": temperature, "top_p": options.get("top_p") or 1.0}
    return arguments
