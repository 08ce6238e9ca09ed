"""Features that were encoded before a forward, and the methods of a model that encode them."""

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vitcop.engine.hooks import uncopied


@dataclass(frozen=True)
class _Known:
    tokens: Any
    features: list[weakref.ref[Tensor]]
    first: Tensor | None  # [n, C] of features that are one tensor [n, T, C]: each one's first token

    def made(self, features: list[Tensor]) -> bool:
        """Whether these are the features, each in its turn, or repeated by prompt as for beams."""
        known = [id(feature()) for feature in self.features]
        if list(dict.fromkeys(map(id, features))) == known:
            return True
        if self.first is None or len(features) != 1 or features[0].shape[2:] != self.first.shape[1:]:
            return False
        alike = (features[0][:, :1].to(self.first) == self.first).all(-1)  # [repeated, n]
        turn = alike.int().argmax(0)
        return bool(alike.any(0).all() & alike.any(1).all() & (turn.diff() >= 0).all())


class Encoded:
    """Finds the visual tokens of features that are handed on: generate() of transformers 5.2x encodes images before
    the prefill. They are known by the object that was returned, and by the tensors of features in it. Neither is kept
    alive, and neither is changed."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def put(self, output: Any, tokens: Any) -> None:
        if isinstance(output, Mapping):
            features = _features(output)
            whole = isinstance(output.get("pooler_output"), Tensor) and features[0].dim() == 3
            first = features[0][:, 0].detach().clone() if whole else None
            known = _Known(tokens, [weakref.ref(feature) for feature in features], first)
            for key in (output, *features):
                self._known[key] = known

    def get(self, output: Any) -> Any:
        """`VisualTokens`, or None for features of which none are known, or that have changed."""
        features = _features(output) if isinstance(output, Mapping) else []
        known = next((self._known[key] for key in (output, *features) if key in self._known), None)
        return known.tokens if known is not None and known.made(features) else None


def _features(output: Mapping[str, Any]) -> list[Tensor]:
    features = output.get("pooler_output")
    return [features] if isinstance(features, Tensor) else list(features or ())


class Replacement:
    """A method of one instance that is called through `wrapper(original, *args, **kwargs)` until `remove()`; or, with
    `around`, between `begin(call)` and `end(result)`, which are told the bound arguments, and None in place of a result
    after an exception. `end` is called if `begin` gave True.

    Who has replaced it again since keeps what he put there, and the original behind it.
    """

    def __init__(
        self,
        instance: Any,
        name: str,
        wrapper: Callable[..., Any] | None = None,
        around: tuple[Callable[[inspect.BoundArguments], bool], Callable[[Any], None]] | None = None,
    ) -> None:
        self._attributes, self._name = vars(instance), name
        self._before = self._attributes.get(name)  # not the class's own
        original = getattr(instance, name)
        signature = inspect.signature(original)

        if around is not None:
            begin, end = (torch.compiler.disable(step) for step in around)

            def between(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                result, begun = None, begin(signature.bind(*args, **kwargs))
                try:
                    result = original(*args, **kwargs)
                finally:
                    if begun:
                        end(result)
                return result

            # What is between is compiled as ever.
            wrapper = torch.compiler.disable(between, recursive=False)
        assert wrapper is not None
        run = wrapper

        def call(*args: Any, **kwargs: Any) -> Any:
            return run(original, *args, **kwargs) if self._active else original(*args, **kwargs)

        self._active = True
        replacement = uncopied(torch.compiler.disable(call, recursive=around is None))
        # generate() reads the signature to know what to pass on.
        self._attributes[name] = self._replacement = functools.wraps(original)(replacement)

    def remove(self) -> None:
        self._active = False
        if self._attributes.get(self._name) is not self._replacement:
            return
        if self._before is None:
            self._attributes.pop(self._name, None)
        else:
            self._attributes[self._name] = self._before
