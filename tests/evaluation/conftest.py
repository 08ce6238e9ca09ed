from pathlib import Path
from typing import Any

import pytest

from vitcop import embedded


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded LLaVA, as a checkpoint on disk."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model: Any = embedded.build_model()
    model.generation_config.suppress_tokens = None
    model.save_pretrained(folder)
    embedded.build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Any]:
    """The shipped photograph, and parts of it."""
    from vitcop.compare import PHOTOGRAPH
    from vitcop.images import open_image

    photograph = open_image(PHOTOGRAPH)
    width, height = photograph.size
    half, third = (0, 0, width // 2, height), (width // 3, height // 3, width, height)
    return [photograph, photograph.crop(half), photograph.crop(third)]
