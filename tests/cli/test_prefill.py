"""`vitcop prefill` prints the prefill times of a random LLaVA at LLaVA-1.5's sequence length."""

import pytest

pytest.importorskip("typer")
pytest.importorskip("transformers")


def test_prefill_prints_both_times_and_the_settings(command):
    done = command("prefill", "--layers", "4", "--width", "128", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in (
        "576 visual and 57 text tokens", "random weights, 4 decoder layers of width 128, float32 on cpu",
        "unpruned", "ViTCoP", "saved", "selection, % of prefill", "576.0",
    ):  # fmt: skip
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--width", "200"), "--width: expected a multiple of 128, got 200"),
        (("--device", "abacus"), "--device: abacus cannot be used here ("),
    ],
)
def test_prefill_rejects_bad_arguments_in_one_sentence(command, arguments, sentence):
    done = command("prefill", "--layers", "4", "--width", "128", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"vitcop: {sentence}")
    assert len(done.stderr.splitlines()) == 1
