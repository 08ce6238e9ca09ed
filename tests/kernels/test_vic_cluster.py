"""The Triton kernels of vic_cluster and vic_cluster_varlen against the float64 reference and against certificates."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clusters import INF, OPTIONS, SEMANTICS, assert_same, grid, option_name, whole
from launchers import assert_batch_invariant, both, launch
from support import LOW_PRECISION, assert_same_bits, layouts, name_of, reference
from torch import Tensor

import vitcop_kernels
from vitcop_kernels.testing.judge import verify

NAN = math.nan
DTYPES = (torch.float32, *LOW_PRECISION)
VECTORS = Path(__file__).parent.parent / "vectors"
semantics_both = pytest.mark.parametrize("semantics", SEMANTICS)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=option_name)


def exact(*args: Any, slack: float = 0.0, **options: Any) -> Any:
    got, want = both("vic_cluster", *args, **options)
    assert_same(got, want, slack=slack)
    return got


def certified(features: Tensor, positions: Tensor | None, d_c: float, tau: float, k: int, **options: Any) -> Any:
    got = launch("vic_cluster", features, positions, d_c, tau, k, **options)
    verify("vic_cluster", (features, positions, d_c, tau, k), options, got)
    return got


@semantics_both
@every_option
def test_whole_numbers_have_one_right_answer(options: dict[str, Any], semantics: str) -> None:
    """Squared distances are exact in float32, and many of them tie; two tiles and a ragged end."""
    features = torch.stack([whole(37, 5), whole(37, 5, 3)])
    slack = 0.0
    if options.get("metric") == "cosine":  # angles of whole vectors tie in exact arithmetic but not in floating point
        features, slack = torch.randn(2, 37, 5), 1e-5
    exact(features, grid(37), 3.0, 0.5, 7, semantics=semantics, slack=slack, **options)


@semantics_both
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("n", "width"), [(1, 1), (65, 64)])
def test_dtypes_and_sizes(n: int, width: int, dtype: torch.dtype, semantics: str) -> None:
    exact(whole(n, width).to(dtype), grid(n), 1.5 * width**0.5, 0.5, max(1, n // 5), semantics=semantics)


@semantics_both
@every_option
def test_padding_and_non_finite_tokens(options: dict[str, Any], semantics: str) -> None:
    features, places = torch.randn(2, 14, 5), grid(14)
    valid = torch.rand(2, 14) < 0.7
    counts = torch.tensor([3, 50])
    features[0, 3, 1], features[0, 6, 4], features[1, 9] = NAN, INF, -INF
    slack = 1e-5 if options.get("metric") == "cosine" else 0.0
    exact(features, places, 2.0, 0.5, 5, valid, counts, semantics=semantics, slack=slack, **options)


@semantics_both
def test_nobody_there(semantics: str) -> None:
    valid = torch.tensor([[False] * 6, [True] * 6])
    # Tensor cores that truncate are off by some 2^-20: delta is no whole number here.
    exact(torch.randn(2, 6, 4), grid(6), 2.0, 0.5, 3, valid, semantics=semantics, slack=1e-5)
    exact(torch.full((2, 6, 4), NAN), grid(6), 2.0, 0.5, 3, semantics=semantics)


@semantics_both
def test_a_lattice_full_of_ties(semantics: str) -> None:
    lattice = torch.tensor(list(itertools.product(range(5), range(4), range(3)))).float()
    exact(lattice, grid(60)[None].squeeze(0), 3.0, 0.4, 17, semantics=semantics)


@semantics_both
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name_of)
@pytest.mark.parametrize("mean", [0.0, 200.0])
def test_exact_duplicates_tie_exactly(dtype: torch.dtype, mean: float, semantics: str) -> None:
    """With the large mean the offsets are removed exactly before the product."""
    distinct = (torch.randn(15, 24) + mean).to(dtype)
    features = torch.cat([distinct, distinct, distinct[:8]])[torch.randperm(38)]
    _labels, _centers, parent, rho, delta = certified(features[None], grid(38), 8.0, INF, 9, semantics=semantics)
    for row in distinct:
        same = (features == row).all(-1).nonzero().flatten()
        assert rho[0, same].unique().numel() == 1
        if semantics == "paper":
            assert parent[0, same[1:]].tolist() == [same[0].item()] * (len(same) - 1)
            assert delta[0, same[1:]].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_real_numbers_are_certified(dtype: torch.dtype) -> None:
    certified((torch.randn(2, 70, 48) * 2).to(dtype), torch.rand(2, 70, 2), 8.0, 0.4, 13)


def test_near_duplicates_are_certified() -> None:
    base = torch.randn(12, 40) * 3
    features = base.repeat(3, 1) + torch.randn(36, 40) * 1e-3
    certified(features[None], grid(36), 8.0, 0.5, 7)


# Powers of two: whole numbers times another factor would round, and their differences no longer be exact.
@pytest.mark.parametrize("magnitude", [2.0**-100, 2.0**-40, 2.0**40, 2.0**100])
def test_magnitudes_beyond_float32_squares(magnitude: float) -> None:
    """Differences in float64, chosen on the device; beside a sample that needs none."""
    features = torch.stack([whole(11, 3, 3) * magnitude, whole(11, 3, 3)])
    d_c = 3.0 * magnitude
    got = launch("vic_cluster", features, grid(11), d_c, 0.5, 3)
    want = reference("vic_cluster", features, grid(11), d_c, 0.5, 3)
    assert_same([t[:1] for t in got], [t[:1] for t in want])
    assert_same(*(op("vic_cluster", features[1], grid(11), 3.0, 0.5, 3) for op in (launch, reference)))


@semantics_both
@pytest.mark.parametrize("options", [dict(root_delta="max", assign="nearest"), dict(density="knn")], ids=option_name)
def test_options_beyond_float32_squares(options: dict[str, Any], semantics: str) -> None:
    for magnitude in (2.0**-100, 2.0**83):
        exact(whole(9, 3, 4) * magnitude, grid(9), 3.0 * magnitude, 0.4, 3, semantics=semantics, **options)


def test_tiny_differences_beside_huge_ones() -> None:
    features = torch.zeros(8, 3)
    features[:4, 0] = torch.tensor([1e-28, 3e-28, 6e-28, 0.0])
    features[4:, 1] = torch.tensor([1.0, 2.0, 4.0, 1e10])
    exact(features, None, 3.0, INF, 3)


@pytest.mark.parametrize(("tau", "axes"), [(0.0, 1), (1e-20, 3), (0.25, 3), (1e20, 1), (INF, 0)])
def test_positions_of_any_width(axes: int, tau: float) -> None:
    places = torch.randint(0, 4, (2, 20, axes)) / 4
    exact(whole(20, 4)[None].repeat(2, 1, 1), places, 2.0, tau, 4)
    exact(whole(20, 4), places[0].double(), 2.0, tau, 4)


def test_the_boundary_of_the_spatial_limit_counts() -> None:
    """Places of a raster fall on it: also where float32 cannot tell."""
    places = torch.arange(20)[:, None] * 0.1
    for tau in (0.3, 0.1 * (1 - 4e-7), 0.1 * (1 - 6e-7)):
        exact(whole(20, 4), places, 2.0, tau, 4)
        exact(whole(20, 4), places.double(), 2.0, tau, 4)


def test_nan_positions_are_near_nothing() -> None:
    places = grid(12)
    places[3, 0] = NAN
    exact(whole(12, 4), places, 2.0, 0.5, 4)


def test_layouts() -> None:
    features, places = whole(18, 6), grid(18)
    want = reference("vic_cluster", features, places, 2.0, 0.5, 4)
    for _, x in layouts(features):
        assert_same(launch("vic_cluster", x, places, 2.0, 0.5, 4), want)
    for _, x in layouts(places):
        assert_same(launch("vic_cluster", features, x, 2.0, 0.5, 4), want)
    batched = torch.stack([whole(18, 16), whole(18, 16)])
    exact(batched[:, 1:], grid(17), 3.0, 0.5, 4)
    exact(batched[:1].expand(2, 18, 16), grid(18), 3.0, 0.5, 4)


@semantics_both
def test_a_batch_changes_no_bit(semantics: str) -> None:
    assert_batch_invariant("vic_cluster", [torch.randn(3, 40, 24)], grid(40), 8.0, 0.5, 7, semantics=semantics)


@pytest.mark.parametrize("stem", ["orphans", "few_budget"])
def test_the_released_code_is_reproduced(stem: str) -> None:
    with np.load(VECTORS / f"{stem}.npz") as golden:
        features, positions = (torch.from_numpy(golden[k]) for k in ("features", "positions"))
        labels = torch.from_numpy(golden["labels"])
        k = vitcop_kernels.num_centers_for(float(golden["alpha"]), len(labels), semantics="released")
        got = launch(
            "vic_cluster", features, positions, float(golden["d_c"]), float(golden["tau"]), k, semantics="released"
        )
    same = got[0][:, None] == got[0]
    assert torch.equal(same, labels[:, None] == labels)
    assert torch.equal(got[0] < 0, labels < 0)


# --- packed samples -----------------------------------------------------------------------------------------------


@semantics_both
@pytest.mark.parametrize("options", OPTIONS[::5], ids=option_name)  # the fuzzer draws the others
def test_packed_samples(options: dict[str, Any], semantics: str) -> None:
    cu = torch.tensor([0, 7, 7, 41, 42], dtype=torch.int32)
    features, places = whole(42, 5), torch.rand(42, 2)
    slack = 0.0
    if options.get("metric") == "cosine":
        features, slack = torch.randn(42, 5), 1e-5
    counts = torch.tensor([2, 3, 50, 1], dtype=torch.int32)
    args = (features, places, cu, 36, 3.0, 0.5, 6, counts)
    got, want = both("vic_cluster_varlen", *args, semantics=semantics, **options)
    assert_same(got, want, slack=slack)


def test_a_packed_sample_has_the_bits_it_has_alone() -> None:
    cu = torch.tensor([0, 33, 50])
    features, places = torch.randn(50, 20), torch.rand(50, 2)
    packed = launch("vic_cluster_varlen", features, places, cu, 40, 8.0, 0.5, 5)
    for b, (first, end) in enumerate(itertools.pairwise(cu.tolist())):
        alone = launch("vic_cluster", features[first:end], places[first:end], 8.0, 0.5, 5)
        assert_same_bits([t[b] if k == 1 else t[first:end] for k, t in enumerate(packed)], alone)


@semantics_both
@pytest.mark.parametrize("cu", [[3, 10, 10, 30], [0, 10, 25, 90], [0, 35, 40, 42], [-5, 10, 20, 42]], ids=str)
def test_malformed_boundaries_are_clamped(cu: list[int], semantics: str) -> None:
    args = (whole(42, 5), None, torch.tensor(cu), 20, 3.0, 0.5, 4)
    assert_same(*both("vic_cluster_varlen", *args, semantics=semantics))


def test_distances_too_large_for_float32_leave_padding_last_in_the_release() -> None:
    features = 1.5e38 * torch.rand(12, 89).round().mul(2).sub(1)
    valid = torch.arange(12) % 3 > 0
    options = {"semantics": "released", "density": "knn", "root_delta": "max"}
    args = (features, None, 1.0, float("inf"), 12, valid)
    got, want = launch("vic_cluster", *args, **options), reference("vic_cluster", *args, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
