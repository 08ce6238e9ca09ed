"""Two processes on a CPU, joined by gloo: tensor parallel as `tp_plan="auto"` makes it, and data parallel."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import torch.distributed as dist
import worker
from tiny_llava import tiny_llava

pytestmark = [
    pytest.mark.family("llava"),
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]
HERE = Path(__file__).parent
# Sums over heads and over halves of a matrix product, in another order than one process adds them.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_llava(key_heads=2).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    return worker.answers(worker.LlavaForConditionalGeneration.from_pretrained(folder / "model").eval())


def two_ranks(task: str, folder: Path, tmp_path: Path) -> list[Any]:
    # They meet at a file. Accelerate wants an address nevertheless, and finds the ranks joined already.
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # as pytest was told
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), task, str(folder), str(tmp_path / "rendezvous")],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(text[-3000:] for text in said)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def assert_equal_ranks(first: Any, second: Any) -> None:
    for name in worker.METHODS:
        one, two = first[name], second[name]
        assert torch.equal(one["sequences"], two["sequences"])
        assert one["segments"] == two["segments"]
        assert all(torch.equal(a, b) for a, b in zip(one["kept"], two["kept"], strict=True))


@pytest.mark.feature("tensor parallel")
def test_ranks_choose_the_same_tokens_as_one_process(folder: Path, alone: Any, tmp_path: Path) -> None:
    first, second = two_ranks("tensor_parallel", folder, tmp_path)
    assert_equal_ranks(first, second)
    assert_equal_ranks(first, alone)
    for name in worker.METHODS:
        torch.testing.assert_close(first[name]["logits"], alone[name]["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.feature("tensor parallel")
def test_the_first_rank_decides(folder: Path, alone: Any, tmp_path: Path) -> None:
    first, second = two_ranks("ranks_that_disagree", folder, tmp_path)
    assert_equal_ranks(first, second)
    assert torch.equal(first["paper"]["kept"][0], alone["paper"]["kept"][0])


@pytest.mark.feature("data parallel")
def test_evaluation_with_accelerate(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = worker.LlavaForConditionalGeneration.from_pretrained(folder / "model").eval()
    logits, sequences = [], []
    with worker.vitcop.prune(model, worker.ViTCoP(retention=0.3)), torch.no_grad():
        for sample in (0, 2, 1, 3):  # gathered rank by rank
            one = worker.batch([worker.prompt(*worker.PROMPTS[sample])])
            logits.append(model(**one).logits[:, -1])
            sequences.append(model.generate(**one, max_new_tokens=worker.NEW, do_sample=False)[:, -worker.NEW :])
    for rank in two_ranks("data_parallel", folder, tmp_path):
        torch.testing.assert_close(rank["logits"], torch.cat(logits), atol=TOLERANCE, rtol=0)
        assert torch.equal(rank["sequences"], torch.cat(sequences))
