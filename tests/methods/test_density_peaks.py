"""`examples/density_peaks.py`: one op clusters as PACT, Chat-UniVi, PruneVid, HoliTom and SparseVLM do."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "density_peaks.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("density_peaks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_and_finds_every_token_in_place(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    assert capsys.readouterr().out.count("144 of 144 tokens") == len(example.methods(64, 12)) == 5


@pytest.mark.parametrize(("tokens", "width", "clusters"), [(57, 32, 9), (100, 16, 5), (83, 20, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_without_structure_go_where_the_published_code_puts_them(
    example: Any, tokens: int, width: int, clusters: int, seed: int
) -> None:
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    for plain, options in example.methods(width, clusters).values():
        assert torch.equal(plain(x, clusters), example.by_kernel(x, clusters, **options))


def test_the_options_matter(example: Any) -> None:
    """No method's clusters are another's here, so that the tests above tell them apart."""
    x = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    found = [tuple(plain(x, 9).tolist()) for plain, _ in example.methods(16, 9).values()]
    assert len(set(found)) == 4  # k = min(7, 9) is PruneVid's 7
