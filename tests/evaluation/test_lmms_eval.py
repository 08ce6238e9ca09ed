"""lmms-eval finds the model, and tasks made here get the answers that a loop of one prompt at a time gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcop import ViTCoP
from vitcop.evaluation.answering import Answerer, Prompt
from vitcop.loading import load_checkpoint

pytest.importorskip("lmms_eval", reason="lmms-eval is an optional extra: make test-eval")

QUESTIONS = [
    ("what is on the table", [0], "cup"),
    ("which of them is the window and who is in it", [0, 1], "boat"),
    ("where is the cup", [2], "table"),
    ("who are you", [], "water"),
    ("what is under the old boat", [1], "sea"),
]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
output_type: {kind}
doc_to_visual: !function helpers.visuals
doc_to_text: "{{{{question}}}}"
{target}
{options}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""

HELPERS = """
from PIL import Image

def visuals(doc):
    return [Image.open(path) for path in doc["pictures"]]

def messages(doc):
    pictures = [{"type": "image", "url": picture} for picture in visuals(doc)]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": doc["question"]}]}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, pictures: list[Any]) -> Path:
    """A folder with a task of generation, one of messages and one of multiple choice on the same questions."""
    folder = tmp_path_factory.mktemp("tasks")
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    rows = [
        {
            "question": question,
            "answer": answer,
            "choices": ["red", answer, "the old house"],
            "index": 1,
            "pictures": [str(folder / f"{number}.png") for number in numbers],
        }
        for question, numbers, answer in QUESTIONS
    ]
    (folder / "data.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "helpers.py").write_text(HELPERS)
    generate = "generation_kwargs:\n  max_new_tokens: 4\n  temperature: 0\n  until: ['\\n\\n']"
    shared = {"data": folder / "data.json", "cache": folder / "cache"}
    answer = 'doc_to_target: "answer"'
    (folder / "words.yaml").write_text(
        TASK.format(
            name="words", kind="generate_until", target=answer, options=generate, metric="exact_match", **shared
        )
    )
    (folder / "messages.yaml").write_text(
        TASK.format(
            name="messages",
            kind="generate_until",
            target=answer,
            metric="exact_match",
            options=generate + "\ndoc_to_messages: !function helpers.messages",
            **shared,
        )
    )
    choices = 'doc_to_target: "index"\ndoc_to_choice: "choices"'
    (folder / "choices.yaml").write_text(
        TASK.format(name="choices", kind="multiple_choice", target=choices, options="", metric="acc", **shared)
    )
    return folder


@pytest.fixture(scope="module")
def results(checkpoint: Path, tasks: Path) -> dict[str, Any]:
    """lmms-eval's own evaluation, in batches of three."""
    return {
        "simple": evaluate(checkpoint, tasks, ["words", "choices"], force_simple=True),
        "chat": evaluate(checkpoint, tasks, ["messages"], force_simple=False),
    }


def evaluate(checkpoint: Path, tasks: Path, names: list[str], force_simple: bool) -> Any:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(
        "vitcop_llava_hf",
        model_args=f"pretrained={checkpoint},method=vitcop,retain=64,device=cpu",
        tasks=names,
        batch_size=3,
        task_manager=manager,
        force_simple=force_simple,
        bootstrap_iters=0,
    )


@pytest.fixture(scope="module")
def one_at_a_time(checkpoint: Path) -> Answerer:
    loaded = load_checkpoint(str(checkpoint), torch.device("cpu"), None)
    return Answerer(loaded.model, loaded.processor, ViTCoP(retain=64))


def test_the_entry_point_is_installed() -> None:
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    assert registry.get_manifest("vitcop_llava_hf").simple_class_path == "vitcop.evaluation.lmms.VitcopLlavaHf"


@pytest.mark.parametrize(("kind", "task"), [("simple", "words"), ("chat", "messages")])
def test_answers_are_those_of_one_prompt_at_a_time(
    results: dict[str, Any], one_at_a_time: Answerer, pictures: list[Any], kind: str, task: str
) -> None:
    samples = sorted(results[kind]["samples"][task], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(QUESTIONS)
    for sample, (question, numbers, _) in zip(samples, QUESTIONS, strict=True):
        prompt = Prompt(one_at_a_time.question(question, len(numbers)), [pictures[n] for n in numbers])
        expected, _ = one_at_a_time.generate([prompt], max_new_tokens=4, do_sample=False)[0]
        assert sample["filtered_resps"][0].strip() == expected.strip()


def test_multiple_choice_takes_the_continuation_of_least_loss(
    results: dict[str, Any], one_at_a_time: Answerer, pictures: list[Any]
) -> None:
    right = []
    for question, numbers, answer in QUESTIONS:
        prompt = Prompt(one_at_a_time.question(question, len(numbers)), [pictures[n] for n in numbers])
        choices = [f" {choice}" for choice in ("red", answer, "the old house")]
        losses = [one_at_a_time.losses([prompt], [choice])[0][0] for choice in choices]
        right.append(losses.index(min(losses)) == 1)
    assert results["simple"]["results"]["choices"]["acc,none"] == pytest.approx(sum(right) / len(right))


def test_the_command_scores_two_settings_and_the_unpruned_model(checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vitcop.commands import app

    out = tmp_path / "results.json"
    arguments = ["--model", str(checkpoint), "--tasks", "words", "--retain", "192", "--retain", "64", "--limit", "1"]
    arguments += ["--include", str(tasks), "--batch-size", "2", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["setting"]["budget"].get("retain") for row in rows] == [None, 192, 64]
    assert rows[0]["kept"] is None and rows[1]["kept"] == pytest.approx(192, abs=1)
    assert rows[2]["kept"] == pytest.approx(64, abs=1)
    assert "retain 64 tokens" in result.output
