"""One thread: threads that wait for each other over small inputs would take most of the time."""

from collections.abc import Iterator

import pytest
from support import threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield
