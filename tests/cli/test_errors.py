"""Whatever the user gets wrong: exit code 2 and one sentence on stderr, never a traceback."""

import json
import shutil

import pytest
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")
from typer.testing import CliRunner

from vitcop.commands import app


@pytest.fixture
def fails(tmp_path, monkeypatch):
    """Call `vitcop run` in this process; returns its one sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["run", "--out", "out", *map(str, arguments)])
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("vitcop: ")
        return lines[0].removeprefix("vitcop: ")

    return run


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent.jpg", "--image: No such file: absent.jpg"),
        ("~$absent.png", "--image: No such file: ~$absent.png"),  # no home of a user $absent
        (
            "~$lock.png",
            "--image: ~$lock.png is not an image in a supported format (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM)",
        ),
        ("folder", "--image: folder is a folder"),
        ("text.jpg", "--image: text.jpg is not an image in a supported format (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM)"),
        (
            "empty.png",
            "--image: empty.png is not an image in a supported format (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM)",
        ),
        (
            "vector.eps",
            "--image: vector.eps is not an image in a supported format (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM)",
        ),
        ("long.png", "--image: long.png is 1 x 3000 pixels, too elongated for a square input"),
        ("large.png", "--image: large.png has 12000 x 9000 pixels, more than the 80 million allowed"),
        ("bomb.png", "--image: bomb.png has more than the 80 million pixels allowed"),
    ],
)
def test_image_that_cannot_be_used(fails, tmp_path, name, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.jpg").write_text("not a photograph")
    (tmp_path / "empty.png").touch()
    (tmp_path / "~$lock.png").touch()
    (tmp_path / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")  # would start a program
    Image.new("L", (1, 3000)).save(tmp_path / "long.png")
    if name == "large.png":
        Image.new("1", (12000, 9000)).save(tmp_path / name)
    if name == "bomb.png":
        Image.new("1", (20000, 20000)).save(tmp_path / name)
    assert fails("--image", name) == sentence


def test_damaged_image(fails, tmp_path):
    from vitcop.compare import PHOTOGRAPH

    (tmp_path / "half.jpg").write_bytes(PHOTOGRAPH.read_bytes()[:30000])
    assert fails("--image", "half.jpg").startswith("--image: half.jpg cannot be decoded (")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--retain", 0), "retain: expected a number of tokens, at least 1, got 0"),
        (("--retention", 1.5), "retention: expected a share in (0, 1], got 1.5"),
        (("--retain", 5, "--retention", 0.5), "retain, retention: expected one of them, got both"),
        (("--prompt", "<image> what?"), "--prompt: leave <image> out; it is inserted automatically"),
        (("--prompt", "caf\udce9"), "--prompt: expected text in UTF-8, got 'caf\\udce9'"),
        (("--model", "~$x/llava"), "--model: No such folder: ~$x/llava"),
        (("--model", "/absent/llava"), "--model: No such folder: /absent/llava"),
        (("--model", "./llava"), "--model: No such folder: ./llava"),
        (("--model", "a/b/c"), "--model: No such folder: a/b/c"),
        (
            ("--model", "folder"),
            "--model: the folder folder has no config.json, so it is not a Hugging Face checkpoint",
        ),
        (("--model", "file"), "--model: file is a file; expected the folder of a Hugging Face checkpoint, or a hub id"),
        (("--model", "a*b"), "--model: a*b is neither a folder nor a hub id (owner/name)"),
        (("--out", "file"), "--out: cannot write into file (File exists)"),
    ],
)
def test_argument_that_cannot_be_used(fails, tmp_path, arguments, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert fails(*arguments) == sentence


def test_device_that_is_not_there(fails):
    assert fails("--device", "cuda:99").startswith("--device: cuda:99 cannot be used here (")
    assert fails("--device", "abacus").startswith("--device: abacus cannot be used here (")


@pytest.mark.parametrize("model_type", ["bert", "unheard-of"])
def test_model_without_an_adapter(fails, tmp_path, model_type):
    (tmp_path / "model").mkdir()
    # auto_map: its own code is not run either
    config = {"model_type": model_type, "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "code.py").write_text("raise SystemExit('code of a checkpoint was run')")
    said = fails("--model", "model")
    assert said.startswith(f"--model: model is a {model_type!r} model, which vitcop does not support; it supports ")


def test_damaged_config(fails, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    assert fails("--model", "model").startswith("--model: model cannot be loaded (")


def test_checkpoint_without_safetensors(fails, tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"a pickle could run code")
    assert fails("--model", "model") == (
        "--model: model has no weights in safetensors format, the only one that vitcop reads"
    )


def test_damaged_weights(fails, tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\0" * 100)
    assert fails("--model", "model").startswith("--model: model cannot be loaded (")


def test_hub_out_of_reach(command, tmp_path):
    done = command("run", "--model", "nobody/nothing", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == (
        "vitcop: --model: nobody/nothing is not in the local cache and the Hugging Face hub cannot be reached\n"
    )


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("RepositoryNotFoundError", "the Hugging Face hub has no a/b (or it is private and you are not logged in)"),
        ("GatedRepoError", "a/b is gated: accept its terms on huggingface.co and log in with `hf auth login`"),
        ("LocalEntryNotFoundError", "a/b is not in the local cache and the Hugging Face hub cannot be reached"),
        ("SomethingElse", "a/b cannot be loaded (No such 'thing')"),
    ],
)
def test_what_the_hub_answers_becomes_one_sentence(kind, sentence):
    """transformers wraps the hub's errors in an OSError of several lines."""
    from vitcop.loading import _why

    cause = type(kind, (OSError,), {})("404")
    error = OSError("No such\n'thing'. See\nmore lines")
    error.__cause__ = cause
    assert _why(error, "a/b") == sentence
