"""No source of ours reads a pickle, runs the code of a checkpoint, or opens a picture past the one function for it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("python", "vitcop_kernels", "benchmarks", "studies", "verification", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.parent.name != "tests")
PICTURES = "python/vitcop/images.py"
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
READS_WEIGHTS = ("ForConditionalGeneration", "Model", "AutoModelForImageTextToText", "ForCausalLM")


def problems(source: str, name: str) -> list[str]:
    """What a source does that it must not, with its line."""
    found: list[str] = []

    def wrong(node: ast.AST, what: str) -> None:
        found.append(f"{name}:{getattr(node, 'lineno', 0)}: {what}")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] in PICKLES:
                    wrong(node, f"imports {module}")
            if modules == ["torch"] and "load" in names:
                wrong(node, "imports torch.load by its bare name")
            if modules == ["PIL.Image"] and "open" in names:
                wrong(node, "imports Image.open by its bare name")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
        if called in ("torch.load", "torch.serialization.load") and given.get("weights_only") is not True:
            wrong(node, "torch.load without weights_only=True")
        if any(k.arg == "trust_remote_code" for k in node.keywords) and given.get("trust_remote_code") is not False:
            wrong(node, "trust_remote_code is not False")
        if any(k.arg == "allow_pickle" for k in node.keywords) and given.get("allow_pickle") is not False:
            wrong(node, "allow_pickle is not False")
        if called.endswith("Image.open") and name != PICTURES:
            wrong(node, "Image.open outside of vitcop.images")
        if called in ("torch.hub.load", "torch.jit.load"):
            wrong(node, called)
        owner, _, method = called.rpartition(".")
        if method == "from_pretrained":
            if owner.startswith("Auto") and given.get("trust_remote_code") is not False:
                wrong(node, f"{called} without trust_remote_code=False")
            if owner.endswith(READS_WEIGHTS) and given.get("use_safetensors") is not True:
                wrong(node, f"{called} without use_safetensors=True")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_sources(folder: str) -> None:
    chosen = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == folder]
    assert chosen
    found = [line for path in chosen for line in problems(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert found == []


def test_the_walk_comes_by_what_is_allowed() -> None:
    """Or it would find nothing because it looks nowhere."""
    text = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
    assert "Image.open(" in text[PICTURES]
    assert sum("torch.load(" in source for source in text.values()) >= 2
    assert sum("from_pretrained(" in source for source in text.values()) >= 3


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import torch\ntorch.load(p)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(p, weights_only=False)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(p, weights_only=flag)", "torch.load without weights_only=True"),
        ("from torch import load", "imports torch.load by its bare name"),
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("import joblib.memory", "imports joblib.memory"),
        ("AutoModel.from_pretrained(n, trust_remote_code=True)", "trust_remote_code is not False"),
        ("AutoProcessor.from_pretrained(n)", "AutoProcessor.from_pretrained without trust_remote_code=False"),
        (
            "AutoModel.from_pretrained(n, trust_remote_code=False)",
            "AutoModel.from_pretrained without use_safetensors=True",
        ),
        (
            "LlavaForConditionalGeneration.from_pretrained(n)",
            "LlavaForConditionalGeneration.from_pretrained without use_safetensors=True",
        ),
        ("Image.open(p)", "Image.open outside of vitcop.images"),
        ("PIL.Image.open(p)", "Image.open outside of vitcop.images"),
        ("from PIL.Image import open", "imports Image.open by its bare name"),
        ("numpy.load(p, allow_pickle=True)", "allow_pickle is not False"),
        ("torch.hub.load(p)", "torch.hub.load"),
    ],
)
def test_the_walk_finds(source: str, what: str) -> None:
    assert [line.split(": ", 1)[1] for line in problems(source, "x.py")][:1] == [what]
