"""The exported checkpoint is the trained model, and its processor hands it what it was trained on."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from studies.training import model as tiny
from studies.training.batches import BOS, EOS, IMAGE, PATCHES, encode
from studies.training.export import export
from studies.training.pictures import compose
from studies.training.questions import ASKERS, WORDS
from vitcop.loading import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("export")
    model = tiny.build(3)
    torch.save({"model": model.state_dict()}, folder / "decoder.pt")
    export(folder / "decoder.pt", folder / "checkpoint")
    return model, folder / "checkpoint"


def test_every_weight_comes_back_in_half_precision(trained: tuple[Any, Path]) -> None:
    model, folder = trained
    loaded, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again, here = loaded.state_dict(), model.state_dict()
    assert list(again) == list(here)
    for name, weight in here.items():
        assert torch.equal(again[name], weight.half().float()), name


def test_processor_makes_what_the_model_was_trained_on(trained: tuple[Any, Path]) -> None:
    from PIL import Image

    processor = AutoProcessor.from_pretrained(trained[1])
    picture = compose(random.Random(0), "validation")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is at top left?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = processor(images=Image.fromarray(picture.pixels), text=text, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == [BOS, *[IMAGE] * PATCHES, *encode("what is at top left")]
    wanted = tiny.normalized(torch.from_numpy(picture.pixels)[None])
    torch.testing.assert_close(inputs["pixel_values"], wanted, rtol=0, atol=1e-6)  # float32, in another order


def test_tokenizer_knows_every_word_of_the_questions(trained: tuple[Any, Path]) -> None:
    tokenizer = AutoProcessor.from_pretrained(trained[1]).tokenizer
    rng = random.Random(1)
    things = compose(rng, "validation").things
    for asker in ASKERS.values():
        asked = asker(rng, things)
        if asked is not None:
            text = " ".join(asked)
            ids = tokenizer(text)["input_ids"]
            assert ids == [BOS, *encode(text)] and tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("a zebra")["input_ids"][-1] == WORDS.index("<unk>")
    written = json.loads((trained[1] / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"  # of transformers 4 and 5
    assert tokenizer.eos_token_id == EOS and tokenizer.padding_side == "left"


def test_the_shipped_checkpoint_is_small_and_has_no_code_and_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert sum(files.values()) < 16e6
    assert {Path(name).suffix for name in files} == {".json", ".jinja", ".safetensors"}
