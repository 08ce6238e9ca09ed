"""vic_cluster: the specification in plain Python, then the kernel against the reference and against certificates."""

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from clusters import INF, OPTIONS, SEMANTICS, certified, exact, grid, option_name, whole
from support import FLOATS, KERNEL_FLOATS, assert_right, both, call, name_of, reference

NAN = math.nan
semantics_both = pytest.mark.parametrize("semantics", SEMANTICS)
right = functools.partial(assert_right, "vic_cluster")


# --- the truth ---------------------------------------------------------------------------------------------------


@semantics_both
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_is_algorithm_2_on_whole_numbers(options: dict[str, Any], semantics: str) -> None:
    for n, width, tau in [(1, 3, 0.6), (2, 1, 0.6), (3, 2, 0.0), (9, 1, 0.4), (16, 2, 0.5), (25, 6, 0.3), (30, 3, INF)]:
        features, places = whole(n, width), grid(n)
        if options.get("metric") == "cosine":
            features = torch.randn(
                n, width
            )  # angles of whole vectors tie in exact arithmetic but not in floating point
        for k in {1, (n + 2) // 3, n}:
            right(features, places, 1.7, tau, k, semantics=semantics, **options)
    right(features[:12], None, 2.0, 0.1, 4, semantics=semantics, **options)


@semantics_both
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_is_algorithm_2_with_padding_and_non_finite_tokens(options: dict[str, Any], semantics: str) -> None:
    features, places = torch.randn(14, 5), grid(14)
    valid = torch.rand(14) < 0.7
    valid[0] = True
    right(features, places, 2.0, 0.5, 4, valid, semantics=semantics, **options)
    features[3, 1], features[6, 4], features[9] = NAN, INF, -INF
    right(features, places, 2.0, 0.5, 5, semantics=semantics, **options)
    right(features, places, 2.0, 0.5, 3, valid, semantics=semantics, **options)


def test_a_worked_example() -> None:
    """On a line: 0 1 2 . . . 7 8, d_c = 1, no spatial limit. 1 is densest; 7 and 8 tie, so 7 comes first."""
    features = torch.tensor([[0.0], [1.0], [2.0], [7.0], [8.0]])
    labels, centers, parent, rho, delta = call("vic_cluster", features, None, 1.0, INF, 2)
    assert parent.tolist() == [1, -1, 1, 4, 2] or parent.tolist() == [1, -1, 1, 2, 3]
    assert centers.tolist() == [1, 3] and labels.tolist() == [0, 0, 0, 1, 1]
    assert delta.tolist() == [1.0, INF, 1.0, 5.0, 1.0]
    e = math.exp
    torch.testing.assert_close(rho[1], torch.tensor(2 * e(-1) + e(-36) + e(-49)))


# --- ties, duplicates --------------------------------------------------------------------------------------------


@semantics_both
@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("metric") != "cosine"], ids=option_name)
@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
@pytest.mark.parametrize(("n", "width"), [(1, 1), (2, 3), (33, 1), (49, 2), (64, 17), (100, 64), (130, 1024)])
def test_whole_numbers_have_one_right_answer(
    n: int, width: int, dtype: torch.dtype, options: dict, semantics: str
) -> None:
    """Squared distances are exact in float32, and many of them tie."""
    features = torch.stack([whole(n, width), whole(n, width, 3)]).to(dtype)
    d_c = 1.5 * width**0.5  # near the typical distance: no density hangs on terms beyond rounding
    exact(features, grid(n), d_c, 0.5, max(1, n // 5), semantics=semantics, **options)


@semantics_both
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_a_lattice_full_of_ties(dtype: torch.dtype, semantics: str) -> None:
    lattice = torch.tensor(list(itertools.product(range(6), range(5), range(3)))).to(dtype)
    got = exact(lattice[None], grid(90)[None], 3.0, 0.4, 17, semantics=semantics)
    assert got[3].unique().numel() < 90 / 2
    exact(lattice, None, 3.0, INF, 17, semantics=semantics)


@semantics_both
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("n", [1, 2, 37, 172])
def test_all_tokens_equal(n: int, dtype: torch.dtype, semantics: str) -> None:
    features = torch.randn(1, 40).to(dtype).expand(n, 40)
    _labels, centers, parent, rho, _delta = exact(features, grid(n), 8.0, INF, max(1, n // 9), semantics=semantics)
    assert rho.unique().tolist() == pytest.approx([n if semantics == "released" else n - 1], rel=1e-15)
    if semantics == "paper":
        assert parent.tolist() == [-1, *[0] * (n - 1)] and centers.tolist() == list(range(max(1, n // 9)))


@semantics_both
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("mean", [0.0, 200.0])
def test_exact_duplicates_tie_exactly(dtype: torch.dtype, mean: float, semantics: str) -> None:
    distinct = (torch.randn(40, 96) + mean).to(dtype)
    features = torch.cat([distinct, distinct, distinct[:20]])[torch.randperm(100)]
    _labels, _centers, parent, rho, delta = certified(features[None], grid(100), 8.0, INF, 20, semantics=semantics)
    for row in distinct:
        same = (features == row).all(-1).nonzero().flatten()
        assert rho[0, same].unique().numel() == 1
        if semantics == "paper":  # the first of them is the densest, the others are its children at distance 0
            assert parent[0, same[1:]].tolist() == [same[0].item()] * (len(same) - 1)
            assert delta[0, same[1:]].eq(0).all()


# --- real numbers: certificates ----------------------------------------------------------------------------------


@semantics_both
@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
@pytest.mark.parametrize(
    ("batch", "n", "width"), [(2, 2, 5), (2, 33, 1), (2, 57, 130), (1, 172, 1000), (1, 288, 1024), (1, 576, 64)]
)
def test_real_shapes_are_certified(batch: int, n: int, width: int, dtype: torch.dtype, semantics: str) -> None:
    features = (
        torch.randn(batch, n, width) * (12 / width**0.5)
        + torch.randn(batch, 1 + n // 9, width).repeat(1, 9, 1)[:, :n] * 0.4
    ).to(dtype)
    places = grid(n) if n % 2 else grid(n).expand(batch, n, 2)
    certified(features, places, 8.0, 0.6, max(1, n // 6), semantics=semantics)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "root_delta" not in o], ids=option_name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_every_option_is_certified(dtype: torch.dtype, options: dict[str, Any]) -> None:
    features = torch.randn(2, 90, 48).to(dtype)
    for semantics in SEMANTICS:
        certified(features, grid(90), 4.0, 0.45, 14, semantics=semantics, **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(
    "case",
    [
        "common offset",
        "near-duplicates",
        "near-duplicates far out",
        "huge",
        "tiny",
        "tiny d_c",
        "huge d_c",
        "mixed scales",
        "far apart",
    ],
)
def test_hard_numbers_are_certified(case: str, dtype: torch.dtype) -> None:
    n, width, d_c = 120, 160, 8.0
    x = torch.randn(1, n, width)
    clumps = torch.randn(1, 12, width).repeat_interleave(10, dim=1)
    if case == "common offset":
        x = x + 200
    elif case == "near-duplicates":
        x, d_c = clumps + 1e-3 * x, 1.0
    elif case == "near-duplicates far out":
        x = 50 * clumps + 1e-2 * x
    elif case == "huge":
        x, d_c = (x * 1e30, 1e31) if dtype != torch.float16 else (x * 1e4, 1e5)
    elif case == "tiny":
        x, d_c = (x * 1e-30, 1e-29) if dtype != torch.float16 else (x * 1e-4, 1e-3)
    elif case == "tiny d_c":
        d_c = 1e-3
    elif case == "huge d_c":
        d_c = 1e30
    elif case == "mixed scales":
        x = x * torch.logspace(-4, 4, n)[:, None].clamp(max=1e4)
    elif case == "far apart":  # rho underflows float32 everywhere, the order of densities must not
        x = x * 100
    certified(x.to(dtype), grid(n), d_c, 0.6, 20)


def test_scaling_by_a_power_of_two_changes_no_index() -> None:
    features = whole(60, 24)
    want = exact(features, grid(60), 6.0, 0.5, 9)
    for power in (-110, -60, 60, 110):
        scale = 2.0**power
        got = exact(features * scale, grid(60), 6.0 * scale, 0.5, 9)
        assert all(map(torch.equal, got[:3], want[:3])), power
        assert torch.equal(got[4], want[4] * scale)


# --- the spatial limit, orphans ------------------------------------------------------------------------------------


@semantics_both
def test_the_boundary_of_tau_is_inside(semantics: str) -> None:
    """Steps of 1/5 and 1/24 in float32 miss 0.6 and 0.25 by a rounding error."""
    features = whole(576, 2, 1)
    for tau in (0.25, 1 / 24, 0.6):
        exact(features, grid(576), 2.0, tau, 60, semantics=semantics)
    places = torch.tensor([[0.2], [0.8], [1.4]])
    line = torch.tensor([[0.0], [0.5], [1.0]])
    assert call("vic_cluster", line, places, 1.0, 0.6, 1, semantics=semantics)[4].tolist()[0] == pytest.approx(0.5)
    assert call("vic_cluster", line, places, 1.0, 0.599, 1, semantics=semantics)[4].tolist() == [INF] * 3


@semantics_both
@pytest.mark.parametrize("assign", ["parent", "nearest"])
def test_orphans(assign: str, semantics: str) -> None:
    features, places = whole(60, 5), grid(60)
    for tau in (0.0, 0.05, 0.13):
        for k in (1, 5, 60):
            got = exact(features, places, 3.0, tau, k, semantics=semantics, assign=assign)
            if semantics == "paper":
                assert got[0].min() >= 0 and (got[2] == -1).sum() == 1
    got = exact(features, places, 3.0, 0.05, 5, semantics=semantics, root_delta="max")
    assert got[4].isfinite().all()


@pytest.mark.parametrize("dtype", [*FLOATS, None], ids=str)
def test_positions_of_any_type_and_width(dtype: torch.dtype | None) -> None:
    features = whole(40, 4)
    for width in (0, 1, 3):
        places = None if dtype is None else (torch.randint(0, 5, (40, width)) / 4).to(dtype)
        exact(features, places, 3.0, 0.5, 6)
    if dtype is not None:
        places = (torch.randint(0, 5, (40, 2)) / 4).to(dtype)
        places[5, 0], places[9] = NAN, INF
        exact(features, places, 3.0, 0.5, 6)


# --- not numbers ---------------------------------------------------------------------------------------------------


@semantics_both
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
def test_non_finite_tokens_are_infinitely_far(dtype: torch.dtype, options: dict[str, Any], semantics: str) -> None:
    features = whole(30, 6) if options.get("metric") != "cosine" else torch.randn(30, 6)
    features[2, 0], features[7, 5], features[11], features[29, 3] = NAN, INF, -INF, NAN
    features = features.to(dtype)
    check = exact if options.get("metric") != "cosine" else (lambda f, *a, **k: both("vic_cluster", f, *a, **k)[0])
    labels, centers, parent, rho, delta = check(features, grid(30), 3.0, 0.6, 5, semantics=semantics, **options)
    bad = [2, 7, 11, 29]
    assert rho[bad].tolist() == [0.0] * 4 and rho.isfinite().all() and not delta.isnan().any()
    assert not set(bad) & set(centers.tolist()) and labels.max() < 5 and parent.min() >= -1 and parent.max() < 30
    if options.get("root_delta") != "max":
        assert delta[bad].tolist() == [INF] * 4
    if semantics == "paper":
        assert parent[bad].unique().tolist() == [parent.eq(-1).nonzero().item()] and labels.min() >= 0
    centers = call("vic_cluster", features, grid(30), 3.0, 0.6, 30, semantics=semantics, **options)[1]
    assert centers.tolist() == list(range(30))


@pytest.mark.parametrize("run", [call, reference])
@pytest.mark.parametrize("root_delta", ["inf", "max"])
def test_non_finite_tokens_are_centres_after_all_others_and_in_order(run: Any, root_delta: str) -> None:
    """Their gamma is 0 times infinity."""
    features = torch.randn(300, 4)
    bad = torch.rand(300) < 0.6
    features[bad] = NAN
    wanted = int((~bad).sum()) + 40
    centers = run("vic_cluster", features, grid(300), 3.0, 0.2, wanted, root_delta=root_delta)[1]
    chosen = torch.cat([(~bad).nonzero()[:, 0], bad.nonzero()[:40, 0]])
    assert centers.tolist() == chosen.sort().values.tolist()


@semantics_both
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_nothing_but_non_finite_tokens(n: int, value: float, semantics: str) -> None:
    features = torch.full((2, n, 8), value)
    features[1, n - 1] = 1.0
    labels, centers, parent, _rho, _delta = exact(features, grid(n), 8.0, 0.6, max(1, n // 3), semantics=semantics)
    assert labels.min() >= -1 and labels.max() < max(1, n // 3) and centers.min() >= 0 and parent.max() < n


def test_features_without_width_are_all_equal() -> None:
    _labels, _centers, parent, rho, _delta = exact(torch.zeros(2, 6, 0), grid(6), 8.0, INF, 2)
    assert parent[0].tolist() == [-1, 0, 0, 0, 0, 0] and rho.unique().tolist() == [5.0]


def test_zero_vectors_under_cosine() -> None:
    features = torch.randn(20, 6)
    features[[3, 8]] = 0
    _labels, _centers, _parent, _rho, delta = certified(features[None], None, 0.5, INF, 4, metric="cosine")
    assert delta[0, 8] == 0 or delta[0, 3] == 0
