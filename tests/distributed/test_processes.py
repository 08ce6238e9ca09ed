"""Two processes on a CPU, joined by gloo: tensor parallel as `tp_plan="auto"` makes it, and data parallel."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import sharded
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
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2"}
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


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return two_ranks("sharded", folder, tmp_path_factory.mktemp("sharded"))


@pytest.mark.feature("FSDP")
@pytest.mark.parametrize("way", sharded.WAYS)
@pytest.mark.parametrize("case", sharded.IMAGES)
def test_ranks_with_sharded_weights_choose_for_themselves(shards: list[Any], way: str, case: str) -> None:
    for rank, found in enumerate(shards):
        for name in sharded.METHODS:
            off, want, got = found[way, case, name]
            assert got == want, (rank, name)
            assert off < TOLERANCE, (rank, name)
    if case != "none":
        assert any(shards[0][way, case, name][1] != shards[1][way, case, name][1] for name in sharded.METHODS)


@pytest.mark.feature("data parallel")
def test_gradients_of_ddp_that_looks_for_unused_parameters(folder: Path, tmp_path: Path) -> None:
    for off in two_ranks("trained", folder, tmp_path):
        assert off < 1e-5  # two float32 sums in another order


def assert_trained(found: Any) -> None:
    """A step of gradient descent on both samples, and logits of three, each computed by itself."""
    model, samples = sharded.FAMILIES["llava"].build(layers=4), sharded.Samples(3)
    method = worker.ViTCoP(retention=0.5)

    def alone(index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[None] for name, tensor in samples[index].items()}

    with worker.vitcop.prune(model, method):
        for index in range(2):
            (model(**alone(index), use_cache=False).loss / 2).backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
            want = torch.cat([model(**alone(index), use_cache=False).logits for index in range(3)])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found["weights"][name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    ((logits, labels),) = found["shown"]
    torch.testing.assert_close(logits, want, atol=TOLERANCE, rtol=1e-4)
    assert torch.equal(labels, torch.stack([samples[index]["labels"] for index in range(3)])) and found["seen"] == 3


@pytest.mark.feature("data parallel")
def test_trainer_with_two_processes(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    for found in two_ranks("trainer", folder, tmp_path):
        assert found["wrapped"] == "DistributedDataParallel"
        assert_trained(found)
