"""The speed and memory targets, run by `python -m pytest -m speed` alone: a shared machine is no stopwatch.

Each ratio is the median over interleaved rounds; a target counts as missed only if it is missed three times.
"""

from collections.abc import Iterator

import pytest
import torch

registry = pytest.importorskip(
    "benchmarks.registry", reason="run from the repository's root: python -m pytest -m speed"
)
ratios = pytest.importorskip("benchmarks.ratios")
pytestmark = pytest.mark.speed


def rows() -> Iterator[object]:
    yield from registry.vic_cluster(compiled=False)
    yield from registry.merging()
    yield from registry.others()


def test_every_ratio_meets_its_target() -> None:
    torch.set_num_threads(2)
    missed = []
    for row in rows():
        for _ in range(3):
            late = [r for r in ratios.measure(row) if r["target"] is not None and r["ratio"] > r["target"]]
            if not late:
                break
        missed += [f"{r['op']} {r['shape']}: {r['ratio']:.3f} of {r['other']}, target {r['target']}" for r in late]
    assert not missed, "\n".join(missed)


def test_memory_grows_linearly_and_stays_below_its_limit() -> None:
    extra = {r["n"]: r["extra_mb"] for r in ratios.memory()}
    if not extra:
        pytest.skip("this system does not tell peak memory")
    assert extra[16384] < ratios.MEMORY_LIMIT, extra
    # Linear: twice the tokens, at most twice the memory and a margin of 8 MB for the allocator.
    assert all(extra[2 * n] <= 2 * extra[n] + 8 for n in (4096, 8192)), extra
