"""One thread: threads that wait for each other over small inputs would take most of the time."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():  # Triton must be told before anything imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
