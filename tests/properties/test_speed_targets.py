"""The memory target, run by `python -m pytest -m speed` alone. Times are reported, not tested: `make targets`."""

import pytest

ratios = pytest.importorskip("benchmarks.ratios", reason="run from the repository's root: python -m pytest -m speed")
pytestmark = pytest.mark.speed


def test_memory_grows_linearly_and_stays_below_its_limit() -> None:
    extra = {r["n"]: r["extra_mb"] for r in ratios.memory()}
    if not extra:
        pytest.skip("this system does not tell peak memory")
    assert extra[16384] < ratios.MEMORY_LIMIT, extra
    # Linear: twice the tokens, at most twice the memory and a margin of 8 MB for the allocator.
    assert all(extra[2 * n] <= 2 * extra[n] + 8 for n in (4096, 8192)), extra
