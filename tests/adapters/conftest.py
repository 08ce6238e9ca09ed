"""One tiny model per kind for all tests: attaching must leave no trace, so sharing it is a test as well."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tiny_llava import tiny_llava


@functools.cache
def _model(key_heads: int, attention: str, dtype: torch.dtype) -> Any:
    return tiny_llava(key_heads=key_heads, attention=attention, dtype=dtype)


@pytest.fixture
def llava() -> Callable[..., Any]:
    """llava(key_heads, attention, dtype): a shared tiny LLaVA of 8 layers."""

    def get(key_heads: int = 4, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        return _model(key_heads, attention, dtype)

    return get
