"""Checkpoints that would run code: none of it is run, and one sentence says what is not read."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from vitcop.compare import UserError
from vitcop.loading import load_checkpoint

Make = Callable[..., Path]


class Payload:
    """Unpickling it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code was run"


@pytest.fixture
def model(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """model(weights=True): a folder of a checkpoint, with its safetensors or without."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(weights: bool = True) -> Path:
        ignored = None if weights else shutil.ignore_patterns("*.safetensors")
        return shutil.copytree(checkpoint, tmp_path / "model", ignore=ignored)

    return make


def refusal(folder: Path, mark: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(str(folder), torch.device("cpu"), None)
    assert not mark.exists()
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(str(folder), "FOLDER")


def test_the_payload_would_work(mark: Path) -> None:
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("shards", [False, True])
def test_only_pickles(model: Make, mark: Path, shards: bool) -> None:
    folder = model(weights=False)
    name = "pytorch_model-00001-of-00001.bin" if shards else "pytorch_model.bin"
    (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    if shards:
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert refusal(folder, mark) == (
        "--model: FOLDER has no weights in safetensors format, the only one that vitcop reads"
    )


@pytest.mark.parametrize("name", ["weights.bin", "../model.safetensors"])
def test_an_index_of_safetensors_that_names_something_else(model: Make, mark: Path, name: str) -> None:
    """transformers reads a pickle here, if only with torch's restricted unpickler."""
    folder = model(weights=False)
    (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(folder, mark) == (
        f"--model: FOLDER has its weights in {name}; expected safetensors files next to their index"
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index(model: Make, mark: Path, content: str) -> None:
    folder = model(weights=False)
    (folder / "model.safetensors.index.json").write_text(content)
    assert refusal(folder, mark).startswith("--model: FOLDER cannot be loaded (")


def test_an_adapter_of_peft(model: Make, mark: Path) -> None:
    """transformers would load another model in its place, and the adapter on top."""
    folder = model()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    said = refusal(folder, mark)
    assert said == "--model: FOLDER has a PEFT adapter; merge it into the weights first"


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_beside_the_weights_is_not_run(model: Make, mark: Path, file: str) -> None:
    """With classes of transformers for everything, they are taken."""
    folder = model()
    if not (folder / file).exists():
        pytest.skip(f"this version of transformers writes no {file}")
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Mine: pass\n")
    content = json.loads((folder / file).read_text())
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor")
    content["auto_map"] = {name: "code.Mine" for name in names} | {"AutoTokenizer": ["code.Mine", "code.Mine"]}
    (folder / file).write_text(json.dumps(content))
    load_checkpoint(str(folder), torch.device("cpu"), None)
    assert not mark.exists()
