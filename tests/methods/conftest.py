"""The tiny LLaVA that the adapter tests share."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers")

from families import FAMILIES


@pytest.fixture
def llava() -> Callable[..., Any]:
    """llava(key_heads, attention, dtype): a shared tiny LLaVA of 8 layers."""
    return FAMILIES["llava"].model
