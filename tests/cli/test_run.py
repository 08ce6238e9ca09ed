"""`vitcop run` from end to end, as a user calls it."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def demo(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    done = command("run", "--model", "random", "--out", out, "--repeats", "1", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((out / "report.json").read_text()), out / "stages.png"


def test_demo_prunes_576_to_172_to_77_to_15(demo):
    _, report, _ = demo
    assert report["visual_tokens"] == 576
    assert [(s["layer"], s["tokens_in"], s["tokens_out"]) for s in report["stages"]] == [
        (0, 576, 172), (2, 172, 77), (22, 77, 15),
    ]  # fmt: skip


def test_demo_prints_stages_costs_both_answers_and_that_weights_are_random(demo):
    printed, report, _ = demo
    for text in (
        "576 -> 172", "172 -> 77", "77 -> 15", "prefill (time to first token)", "FLOPs, counter", "FLOPs, Eq. 9",
        "CR_int", "KV cache", "selection, % of prefill", "merged", "answer, unpruned", "answer, pruned",
        "random weights, meaningless answer",
        "measuring 1 of 1",
    ):  # fmt: skip
        assert text in printed
    assert report["unpruned"]["answer"] in printed
    assert report["random_weights"] is True


def test_demo_report_is_consistent(demo):
    _, report, _ = demo
    first, second, third = report["stages"]
    for before, after in pairwise(report["stages"]):
        assert set(after["kept"]) <= set(before["kept"])
    assert sorted(token for members in second["segments"] for token in members) == first["kept"]
    assert second["merged"] == sum(second["is_mean"]) > 0
    assert len(second["labels"]) == 172
    assert len(third["kept"]) == 15
    assert 0 < report["kv_bytes"] < report["kv_bytes_unpruned"]
    assert 0 < report["flops"]["counter"] < report["flops"]["counter_unpruned"]
    assert 0 < report["flops"]["eq9"] < report["flops"]["eq9_unpruned"]
    assert report["cr_int"] == pytest.approx(1 - (172 + 20 * 77 + 11 * 15) / (32 * 576))
    assert report["mean_tokens"] == pytest.approx((2 * 172 + 20 * 77 + 10 * 15) / 32)
    assert report["selection_seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"]))
    for arm in (report["unpruned"], report["pruned"]):
        assert arm["tokens"] == 4
        assert 0 < arm["timing"]["first_token"] < arm["timing"]["total"]
        assert arm["timing"]["per_token"] > 0


def test_demo_picture_is_a_picture(demo):
    picture = Image.open(demo[2])
    assert min(picture.size) > 800
    assert len(picture.convert("RGB").getcolors(maxcolors=10**7)) > 5000


def test_run_takes_a_saved_checkpoint_an_image_of_any_shape_and_the_released_semantics(command, checkpoint, tmp_path):
    image = tmp_path / "wide.png"
    Image.effect_noise((500, 120), 60).convert("RGBA").save(image)
    out = tmp_path / "a" / "b"
    done = command(
        "run", "--model", checkpoint, "--image", image, "--prompt", "Where?", "--semantics", "released", "--out", out,
        "--retention", "0.1111", "--repeats", "1", "--max-new-tokens", "1", "--dtype", "bfloat16", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert [stage["tokens_out"] for stage in report["stages"]] == [172, 77, 15]
    assert report["dtype"] == "bfloat16"
    assert report["method"]["ViTCoP"]["semantics"] == "released"
    assert report["random_weights"] is False
    assert report["unpruned"]["timing"]["per_token"] is None
    assert (out / "stages.png").stat().st_size > 50_000


def test_vitcop_tiny_answers_right_pruned_and_unpruned(command, tmp_path):
    done = command("run", "--repeats", "1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["visual_tokens"] == 196
    assert report["mean_tokens"] == pytest.approx(64, abs=1)
    for arm in ("unpruned", "pruned"):
        assert report[arm]["answer"] == "yellow 4"  # as one sees in the picture
    assert done.stdout.count("yellow 4") == 2
    assert report["random_weights"] is False
    assert "meaningless" not in done.stdout


def test_shipped_photograph_is_small_and_its_licence_is_stated():
    from vitcop.compare import PHOTOGRAPH

    assert PHOTOGRAPH.stat().st_size < 100_000
    licence = (PHOTOGRAPH.parent / "LICENSE.md").read_text()
    assert PHOTOGRAPH.name in licence
    assert "CC0" in licence


def test_readme_picture_is_small():
    assert (Path(__file__).parents[2] / "docs" / "stages.png").stat().st_size < 400_000


def test_another_method_is_named_everywhere(command, tmp_path):
    few = ("--repeats", "1", "--max-new-tokens", "1")
    done = command("run", "--model", "random", "--method", "sparsevlm", *few, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("method: SparseVLM", "sparsevlm 1", "576 -> 82", "82 -> 32", "32 -> 18", "before layer 16"):
        assert text in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["method"] == {"SparseVLM": {"retain": 64, "recycle": True}}
    assert [stage["merged"] for stage in report["stages"]] == [16, 2, 1]
    assert report["mean_tokens"] == 82.25  # not 64
    assert len(Image.open(tmp_path / "stages.png").convert("RGB").getcolors(maxcolors=10**7)) > 5000


def test_method_option_knows_every_method_and_says_what_is_wrong(command, tmp_path):
    from vitcop.commands import Name
    from vitcop.methods import METHODS

    assert [str(name) for name in Name] == list(METHODS)
    done = command("run", "--method", "fastv", "--semantics", "released", "--out", tmp_path)
    assert done.returncode == 2
    assert "--semantics: expected with --method vitcop alone, got it with --method fastv" in done.stderr
    done = command("run", "--method", "fastv", "--retain", "20", "--out", tmp_path)
    assert done.returncode == 2
    assert "infeasible budget: expected 33.5 to 196.0 of 196 visual tokens" in done.stderr
