"""What an adapter is: where a model family keeps what methods look at. It does not know which method it serves."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, MutableSequence, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vitcop.engine.hooks import plain
from vitcop.engine.memory import DecoderShape
from vitcop.engine.vision import KINDS, VisualTokens
from vitcop.methods.base import Program

VISION = "vitcop"
"""Extra key of the vision tower's ModelOutput. generate() of transformers 5.2x encodes images before the prefill and
hands that object on, so what Stage I needs travels with it."""


class Removable(Protocol):
    """What is put into a model and can be taken out of it again."""

    def remove(self) -> None: ...


class Adapter(ABC):
    """One model family in Hugging Face form.

    Args:
        owner: the module that owns the vision tower and whose forward takes `input_ids`.

    Raises:
        NotImplementedError: a configuration that cannot be pruned.
    """

    tower: ClassVar[str] = "vision_tower"
    """What the owner calls its vision tower."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.config: Any = owner.config
        language_model = self.owner.language_model
        self.decoder: Any = language_model if hasattr(language_model, "layers") else language_model.model
        self.visual_ids = visual_token_ids(self.config)
        text: Any = self.decoder.config
        sliding = "sliding_attention" in (getattr(text, "layer_types", None) or ())
        if sliding or (getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)):
            raise NotImplementedError(
                f"model: expected full attention in every decoder layer, got a sliding window of {text.sliding_window}"
            )
        heads = text.num_attention_heads
        self.shape = DecoderShape(
            num_layers=len(self.decoder.layers),
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_key_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        )
        self._parameters = list(inspect.signature(type(self.owner).forward).parameters)[1:]

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the owner's forward by name."""
        return dict(zip(self._parameters, args, strict=False)) | kwargs

    def positions_for(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin `[B, n, d]` for position ids `[B, n]`, by the decoder's own rotary embedding."""
        return self.decoder.rotary_emb(hidden, position_ids)

    def project(self, states: Tensor) -> Tensor:
        """[..., D] hidden states of the vision tower -> [..., C] input of the decoder."""
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
    def watch(self, tower_outputs: MutableSequence[VisualTokens]) -> Iterable[Removable]:
        """Hook the vision side: each run of the tower appends its tokens to `tower_outputs`, and leaves them in its
        output under the key `VISION`. Hooks are `untraced`, or `uncopied` in an `Uncompiled` layer of the tower, and
        what they keep from call to call is of one thread: `PerThread` or `Seen`."""

    def given(self, arguments: dict[str, Any]) -> tuple[bool, list[VisualTokens]]:
        """Whether a forward comes with visual features, and those that were encoded before it."""
        encoded = [out for out in (arguments.get("mm_encoder_outputs") or {}).values() if out is not None]
        pixels = any(arguments.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
        tokens = []
        for output in encoded:
            if VISION not in output:
                raise NotImplementedError(
                    "mm_encoder_outputs: expected outputs of this model's vision tower under vitcop, got others "
                    "(features encoded before pruning was switched on, or prefill_chunk_size)"
                )
            tokens.append(output[VISION])
        return pixels or bool(encoded), tokens


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


def feature_layer(layers: nn.ModuleList, index: int | Sequence[int]) -> Any:
    """The layer whose output is `hidden_states[index]`; of several, the last."""
    last = index if isinstance(index, int) else index[-1]
    return plain(layers[last if last < 0 else last - 1])
