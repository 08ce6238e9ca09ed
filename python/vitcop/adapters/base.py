"""What an adapter is: where a model family keeps what methods look at. It does not know which method it serves."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vitcop.engine import packing, parallel
from vitcop.engine.hooks import PerThread
from vitcop.engine.memory import DecoderShape
from vitcop.engine.vision import KINDS, VisualTokens
from vitcop.methods.base import Program

from .decoders import check_sharding, check_structure
from .encoded import Encoded, Replacement


class Removable(Protocol):
    """What is put into a model and can be taken out of it again."""

    def remove(self) -> None: ...


@dataclass
class Encoding:
    """A call of the owner's `get_image_features` or `get_video_features` in progress."""

    kind: str  # which of the two: "image" or "video"
    arguments: dict[str, Any]  # by name
    tokens: Any = None  # `VisualTokens`, once the tower has run


class Adapter(ABC):
    """One model family in Hugging Face form.

    Args:
        owner: the module that owns the vision tower and whose forward takes `input_ids`.

    Raises:
        NotImplementedError: a configuration that cannot be pruned.
    """

    tower: ClassVar[str] = "vision_tower"
    """What the owner calls its vision tower."""
    counts_tokens: ClassVar[bool] = True
    """Whether position ids are `[B, n]` and count tokens."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.config: Any = owner.config
        language_model = self.owner.language_model
        self.decoder: Any = language_model
        if not hasattr(language_model, "layers"):
            self.decoder = getattr(language_model, "model", None)
        check_structure(self.decoder, language_model)
        check_sharding(self.decoder)
        self.visual_ids = visual_token_ids(self.config)
        text: Any = self.decoder.config
        heads = text.num_attention_heads
        self.shape = DecoderShape(
            num_layers=len(self.decoder.layers),
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_key_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        )
        self.generators: list[Any] = []  # models around the owner that could batch continuously
        self.embedding_scale = 1.0  # what the decoder multiplies its input by, before its first layer
        self.encodings: PerThread[Encoding] = PerThread()  # in progress in this thread: none or one
        self._encoded = Encoded()
        self._parameters = list(inspect.signature(type(self.owner).forward).parameters)[1:]

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the owner's forward by name."""
        return dict(zip(self._parameters, args, strict=False)) | kwargs

    def positions_for(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin `[B, n, d]` for position ids `[B, n]`, by the decoder's own rotary embedding."""
        return self.decoder.rotary_emb(hidden, position_ids)

    def project(self, states: Tensor) -> Tensor:
        """[..., D] hidden states of the vision tower -> [..., C] input of the decoder's first layer."""
        raise NotImplementedError(
            f"method: expected one that needs no projector, which {type(self).__name__} does not offer"
        )

    def ids_of(self, embeds: Tensor) -> Tensor:
        """`[B, q, C]` -> `[B, q]` ids: that of a placeholder where it is exactly its embedding (this is how the models
        find them without `input_ids`), -1 elsewhere."""
        ids = torch.full(embeds.shape[:2], -1, device=embeds.device)
        for token in self.visual_ids.values():
            row = self.owner.get_input_embeddings()(torch.tensor(token, device=embeds.device)).to(embeds)
            ids = ids.masked_fill((embeds == row).all(-1), token)
        return ids

    def fit(self, program: Program) -> Program:
        """A method's program as this family can run it. Raises NotImplementedError where it cannot."""
        return program

    def text_positions(self, position_ids: Tensor | None) -> Tensor | None:
        """Those of the decoder's position ids that count tokens, `[B, n]`; None: take the slots' own order."""
        return position_ids

    def read_rotary(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """cos and sin `[B or 1, n, d]` from what the decoder gives its layers."""
        return embeddings

    def write_rotary(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """cos and sin `[B or 1, n, d]` as the layers want them."""
        return embeddings

    def take_injections(self, kwargs: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
        """Features that the decoder adds to its visual tokens after its first layers, one `[T, C]` per layer, and the
        arguments of its forward without them."""
        return [], kwargs

    @abstractmethod
    def watch_tower(self) -> Iterable[Removable]:
        """Hook the vision tower: a run of it leaves its tokens in `self.encodings[-1]`, if there is one. Hooks are
        `untraced`, or `uncopied` in an `Uncompiled` layer of the tower, and what they keep from call to call is of one
        thread: `PerThread` or `Seen`."""

    def begin(self, encoding: Encoding) -> None:  # noqa: B027
        """Get ready for a run of the tower."""

    def finish(self, encoding: Encoding) -> None:  # noqa: B027
        """Bring the tokens of the tower to those of the prompt, after `encoding` has ended."""

    def option(self, arguments: dict[str, Any], name: str) -> Any:
        """An option as a call gives it, or the configuration."""
        given = arguments.get(name)
        return getattr(self.config, name) if given is None else given

    def check_options(self, arguments: dict[str, Any]) -> None:  # noqa: B027
        """Raise NotImplementedError for options of a call of the model that cannot be followed."""

    def watch(self, tower_outputs: MutableSequence[VisualTokens]) -> Iterable[Removable]:
        """Hook the vision side: whatever encodes images or videos appends their tokens to `tower_outputs`, and they are
        known by the features that it returns."""

        def begin(kind: str, call: inspect.BoundArguments) -> bool:
            if self.encodings:  # called by the other
                return False
            self.check_options(call.arguments)
            encoding = Encoding(kind, call.arguments)
            self.begin(encoding)
            self.encodings.append(encoding)
            return True

        def end(output: Any) -> None:
            encoding = self.encodings.pop()
            if output is not None and encoding.tokens is not None:
                self.finish(encoding)
                tower_outputs.append(encoding.tokens)
                self._encoded.put(output, encoding.tokens)

        yield from self.watch_tower()
        for model in self.generators:
            yield Replacement(model, "init_continuous_batching", _no_continuous_batching)
        for kind in KINDS:
            if hasattr(type(self.owner), f"get_{kind}_features"):
                yield Replacement(self.owner, f"get_{kind}_features", around=(functools.partial(begin, kind), end))

    def given(self, arguments: dict[str, Any]) -> tuple[bool, list[VisualTokens]]:
        """Whether a forward comes with visual features, and those that were encoded before it."""
        encoded = [out for out in (arguments.get("mm_encoder_outputs") or {}).values() if out is not None]
        pixels = any(arguments.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
        if pixels or encoded:
            if parallel.several_processes():  # sharded since it was attached to
                check_sharding(self.decoder)
            packing.check_lengths(arguments)
        if pixels:
            self.check_options(arguments)
        found = [self._encoded.get(output) for output in encoded]
        tokens = [one for one in found if one is not None]
        if len(tokens) < len(found):
            raise NotImplementedError(
                "mm_encoder_outputs: expected what this model's get_image_features or get_video_features returned "
                "under this pruning, got other features (encoded by another model, such as the one that an assistant "
                "assists, before pruning was switched on, changed since, or in parts: prefill_chunk_size)"
            )
        return pixels or bool(encoded), tokens


def _no_continuous_batching(original: Any, *args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(
        "generate_batch: continuous batching keeps one length for all layers of a sequence and cannot be pruned; call "
        "generate() instead, or leave the pruning first."
    )


def visual_token_ids(config: Any) -> dict[str, int]:
    """The placeholder of each kind (`layout.KINDS`) that the model has."""
    found = {}
    for kind in KINDS:
        ids = (getattr(config, f"{kind}_token_{name}", None) for name in ("id", "index"))
        token = next((i for i in ids if i is not None), None)
        if token is not None:
            found[kind] = token
    return found


def tower_layers(tower: Any) -> nn.ModuleList:
    """5.x: tower.encoder.layers; 4.5x: tower.vision_model.encoder.layers."""
    return getattr(tower, "vision_model", tower).encoder.layers


def feature_layer(layers: nn.ModuleList, index: int | Sequence[int]) -> int:
    """The number of the layer whose output is `hidden_states[index]`; of several, the last."""
    last = index if isinstance(index, int) else index[-1]
    number = last + len(layers) if last < 0 else last - 1
    if not 0 <= number < len(layers):
        raise NotImplementedError(
            f"vision_feature_layer: expected the output of one of the tower's {len(layers)} layers, got {index}"
        )
    return number
