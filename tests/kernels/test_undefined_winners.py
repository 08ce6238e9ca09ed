"""Of several lanes that store to one address any may win: no result may depend on which."""

from typing import Any

import pytest
import torch
from launchers import EMULATED, emulator, launch
from support import assert_same_bits
from test_vic_cluster_together import as_one_launch, by_phases

pytestmark = pytest.mark.skipif(not EMULATED, reason="the emulator alone chooses which lane wins")
WINNERS = {"the highest lane": 0, "the lowest lane": 1, "any": 2}


def for_every_winner(monkeypatch: pytest.MonkeyPatch, call: Any, *args: Any, **kwargs: Any) -> list[Any]:
    config = emulator().config
    monkeypatch.setattr(config, "tolerate", ("conflicting",))  # what matters is the result
    results = []
    for winner in WINNERS.values():
        monkeypatch.setattr(config, "lane_order", winner)
        results.append(call(*args, **kwargs))
    return results


@pytest.mark.parametrize("form", [as_one_launch, by_phases], ids=["one launch", "phases"])
def test_exact_duplicates_tie(monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    """Rows of at most 16 channels: one element a lane, so a sum of squares is products and shuffles alone."""
    distinct = torch.randn(12, 16)
    features = torch.cat([distinct] * 4)[torch.randperm(48)]
    runs = for_every_winner(monkeypatch, form, "vic_cluster", features[None], None, 4.0, float("inf"), 6)
    for run in runs:
        assert_same_bits(run, runs[0])
        for row in distinct:
            assert run[3][0, (features == row).all(-1)].unique().numel() == 1


@pytest.mark.parametrize("head_dim", [4, 64])
def test_key_norms(monkeypatch: pytest.MonkeyPatch, head_dim: int) -> None:
    keys = torch.randn(1, 3, 9, head_dim)
    runs = for_every_winner(monkeypatch, launch, "key_norms", keys, heads="mean")
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("shape", [(4, 1, 16), (2, 3, 8)], ids=["one row", "several rows"])
def test_attention_saliency(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]) -> None:
    heads, rows, head_dim = shape
    query, key = torch.randn(heads, rows, head_dim), torch.randn(heads, 70, head_dim)
    runs = for_every_winner(monkeypatch, launch, "attention_saliency", query, key)
    assert all(torch.equal(run, runs[0]) for run in runs)
