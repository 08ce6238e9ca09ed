"""vic_cluster on batches, padding, layouts and threads, and vic_cluster_varlen on ragged samples."""

import itertools
from typing import Any

import pytest
import torch
from clusters import INF, OPTIONS, SEMANTICS, assert_same, exact, grid, option_name, whole
from support import (
    FLOATS,
    KERNEL_FLOATS,
    NATIVE_OPS,
    assert_batch_invariant,
    assert_same_bits,
    both,
    call,
    expanded,
    layouts,
    name_of,
    reference,
    threads,
)
from torch import Tensor

semantics_both = pytest.mark.parametrize("semantics", SEMANTICS)
WHOLE = [o for o in OPTIONS if o.get("metric") != "cosine"]


@semantics_both
@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[5], OPTIONS[8]], ids=option_name)
@pytest.mark.parametrize(("n", "width"), [(1, 4), (50, 33), (172, 256)])
def test_a_batch_and_threads_change_nothing(
    n: int, width: int, options: dict, dtype: torch.dtype, semantics: str
) -> None:
    features, places = torch.randn(3, n, width).to(dtype), grid(n).expand(3, n, 2)
    assert_batch_invariant(
        "vic_cluster", [features, places], 5.0, 0.5, max(1, n // 8), samples=3, semantics=semantics, **options
    )


def test_fifty_runs_give_the_same_bits() -> None:
    features = torch.randn(2, 150, 128)
    first = call("vic_cluster", features, grid(150), 8.0, 0.6, 20)
    for _ in range(50):
        assert_same_bits(torch.ops.vitcop.vic_cluster(features, grid(150), 8.0, 0.6, 20), first)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_every_layout_gives_the_same(dtype: torch.dtype) -> None:
    features, places = torch.randn(2, 45, 24).to(dtype), torch.rand(2, 45, 2)
    valid = torch.rand(2, 45) < 0.8
    counts = torch.tensor([3, 7])
    want = call("vic_cluster", features, places, 4.0, 0.5, 7, valid, counts)
    for name, view in layouts(features):
        assert_same_bits(call("vic_cluster", view, places, 4.0, 0.5, 7, valid, counts), want, name)
    for name, view in layouts(places):
        assert_same_bits(call("vic_cluster", features, view, 4.0, 0.5, 7, valid, counts), want, name)
    for name, view in layouts(valid):
        assert_same_bits(call("vic_cluster", features, places, 4.0, 0.5, 7, view, counts), want, name)
    for name, view in layouts(counts):
        assert_same_bits(call("vic_cluster", features, places, 4.0, 0.5, 7, valid, view), want, name)
    assert_same_bits(call("vic_cluster", features, places, 4.0, 0.5, 7, valid, counts.int()), want)
    one = [t[:1] for t in want]
    same = call(
        "vic_cluster",
        *(expanded(t[0], 3) for t in (features, places)),
        4.0,
        0.5,
        7,
        expanded(valid[0], 3),
        counts[:1].expand(3),
    )
    for k in range(3):
        assert_same_bits([t[k : k + 1] for t in same], one)
    rows = features[:1, :1].expand(2, 9, 24)
    exact(rows, None, 4.0, INF, 3)


def test_shared_positions_are_every_samples_positions() -> None:
    features, places = torch.randn(3, 40, 8), grid(40)
    shared = call("vic_cluster", features, places, 4.0, 0.3, 6)
    assert_same_bits(call("vic_cluster", features, expanded(places, 3), 4.0, 0.3, 6), shared)


def test_an_empty_batch() -> None:
    shapes = [t.shape for t in exact(torch.zeros(0, 7, 4), grid(7), 8.0, 0.6, 3)]
    assert shapes == [(0, 7), (0, 3), (0, 7), (0, 7), (0, 7)]
    exact(
        torch.zeros(0, 7, 4),
        torch.zeros(0, 7, 2),
        8.0,
        0.6,
        3,
        torch.ones(0, 7, dtype=torch.bool),
        torch.ones(0, dtype=torch.int64),
    )


@semantics_both
@pytest.mark.parametrize("options", WHOLE, ids=option_name)
def test_center_counts_are_clamped(options: dict[str, Any], semantics: str) -> None:
    features = torch.stack([whole(30, 4)] * 5)
    counts = torch.tensor([1, 6, -3, 99, 4])
    centers = exact(features, grid(30), 3.0, 0.5, 6, None, counts, semantics=semantics, **options)[1]
    assert (centers >= 0).sum(-1).tolist() == [1, 6, 1, 6, 4]


@pytest.mark.parametrize("options", WHOLE, ids=option_name)
@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
def test_padding_exists_for_nobody(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """The tokens that are valid get what they get without the others, wherever padding lies, whatever it holds."""
    for trial in range(4):
        features, places = whole(40, 6).to(dtype), grid(40)
        valid = torch.rand(40) < (0.9, 0.5, 0.2, 0.04)[trial]
        valid[17] = True
        features[~valid] = (float("nan"), 0.0, float("inf"), 1.0)[trial]
        places[~valid] = (float("nan"), 0.0, 0.5, 1.0)[trial]
        kept = valid.nonzero().flatten()
        k = max(1, len(kept) // 4)
        got = exact(features, places, 3.0, 0.5, k, valid, **options)
        alone = call("vic_cluster", features[kept], places[kept], 3.0, 0.5, k, **options)
        assert torch.equal(got[0][kept], alone[0]) and torch.equal(got[1], kept[alone[1]])
        assert torch.equal(got[2][kept], torch.where(alone[2] >= 0, kept[alone[2]], -1))
        torch.testing.assert_close(got[3][kept], alone[3])
        torch.testing.assert_close(got[4][kept], alone[4])
        for t, blank in zip((got[0], *got[2:]), (-1, -1, 0.0, INF), strict=True):
            assert (t[~valid] == blank).all()


@semantics_both
def test_nothing_valid_and_fewer_valid_than_centers(semantics: str) -> None:
    features = whole(12, 3).expand(3, 12, 3)
    valid = torch.zeros(3, 12, dtype=torch.bool)
    valid[1, 4], valid[2, 2:5] = True, True
    labels, centers, _parent, _rho, _delta = exact(features, grid(12), 3.0, 0.6, 5, valid, semantics=semantics)
    assert centers.tolist() == [[-1] * 5, [4, -1, -1, -1, -1], [2, 3, 4, -1, -1]]
    assert labels[0].tolist() == [-1] * 12 and labels[1, 4] == 0 and labels[2, 2:5].tolist() == [0, 1, 2]


# --- ragged samples --------------------------------------------------------------------------------------------------


def ragged(lengths: list[int], index: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(index)


def exact_varlen(
    features: Tensor,
    places: Tensor | None,
    cu: Tensor,
    longest: int,
    d_c: float,
    tau: float,
    k: int,
    *rest: Any,
    **options: Any,
) -> Any:
    got, want = both("vic_cluster_varlen", features, places, cu, longest, d_c, tau, k, *rest, **options)
    assert_same(got, want)
    return got


@pytest.mark.parametrize("options", WHOLE, ids=option_name)
@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
@pytest.mark.parametrize("lengths", [[1], [5, 1, 9], [0, 7, 0, 0, 12, 0], [30, 2, 31]], ids=str)
def test_varlen_equals_the_reference(lengths: list[int], dtype: torch.dtype, options: dict[str, Any]) -> None:
    features, places = whole(sum(lengths), 5).to(dtype), torch.cat([grid(n) for n in lengths])
    longest = max(lengths)
    for index, spare, counts in ((torch.int32, 0, None), (torch.int64, 3, torch.arange(len(lengths)))):
        exact_varlen(
            features, places, ragged(lengths, index), longest + spare, 3.0, 0.5, min(4, longest), counts, **options
        )
    exact_varlen(features, None, ragged(lengths), longest, 3.0, INF, 1, **options)


@semantics_both
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_a_ragged_sample_has_the_bits_it_has_alone(options: dict[str, Any], dtype: torch.dtype, semantics: str) -> None:
    lengths = [23, 0, 1, 60, 2, 41]
    features = torch.randn(sum(lengths), 40).to(dtype)
    places = torch.rand(sum(lengths), 2)
    cu, k = ragged(lengths), 6
    got = call("vic_cluster_varlen", features, places, cu, 64, 4.0, 0.7, k, semantics=semantics, **options)
    with threads(1):
        assert_same_bits(
            call("vic_cluster_varlen", features, places, cu, 64, 4.0, 0.7, k, semantics=semantics, **options), got
        )
    labels, centers, parent, rho, delta = got
    for b, n in enumerate(lengths):
        rows = slice(cu[b], cu[b + 1])
        if n == 0:
            assert centers[b].tolist() == [-1] * k
            continue
        alone = call("vic_cluster", features[rows], places[rows], 4.0, 0.7, min(k, n), semantics=semantics, **options)
        padded = torch.nn.functional.pad(alone[1], (0, k - min(k, n)), value=-1)
        assert_same_bits(
            [t[rows] for t in (labels, parent, rho, delta)] + [centers[b]], [*alone[:1], *alone[2:], padded]
        )


def test_tied_gammas_of_the_release_are_ordered_as_alone() -> None:
    """torch's unstable sort orders ties by the length of the row, so padding must not be part of it."""
    if "vic_cluster_varlen" not in NATIVE_OPS:
        pytest.skip("the reference cannot see lengths without a host sync, and sorts padded rows")
    lengths = [70, 40, 90]
    features, places, cu = whole(200, 3), torch.cat([grid(n) for n in lengths]), ragged(lengths)
    got = call("vic_cluster_varlen", features, places, cu, 90, 3.0, 0.02, 12, semantics="released")
    for b in range(3):
        rows = slice(cu[b], cu[b + 1])
        alone = call("vic_cluster", features[rows], places[rows], 3.0, 0.02, 12, semantics="released")
        assert torch.equal(got[1][b], alone[1]) and torch.equal(got[0][rows], alone[0]), b


@pytest.mark.parametrize("run", [call, reference])
def test_distances_too_large_for_float32_leave_padding_last_in_the_release(run: Any) -> None:
    """A density of 0 times a distance of inf is no number, which torch sorts behind padding."""
    features = 1.5e38 * torch.rand(12, 89).round().mul(2).sub(1)
    valid = torch.arange(12) % 3 > 0
    options = {"semantics": "released", "density": "knn", "root_delta": "max"}
    labels, centers, parent, rho, delta = run("vic_cluster", features, None, 1.0, INF, 12, valid, **options)
    assert delta[valid].isinf().all() and (rho == 0).all()
    assert centers.tolist() == [i for i in range(12) if valid[i]] + [-1] * 4
    assert (labels[valid] >= 0).all() and (labels[~valid] == -1).all() and (parent < 12).all()


@pytest.mark.parametrize("run", [call, reference])
def test_duplicates_have_a_density_whatever_the_cutoff(run: Any) -> None:
    """1/d_c^2 leaves the range of a double; only duplicates are near each other then."""
    features = torch.tensor([[1.0], [1.0], [2.0], [1.0]])
    labels, _, parent, rho, _ = run("vic_cluster", features, None, 1e-320, INF, 1, dist_scale=1e30)
    assert rho.tolist() == [2, 2, 0, 2] and labels.tolist() == [0] * 4 and parent.tolist() == [-1, 0, 0, 0]


@semantics_both
@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=name_of)
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_distances_that_are_taken_again_are_the_same(
    options: dict[str, Any], dtype: torch.dtype, semantics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a limit the C++ kernel keeps those of the upper triangle, as many as fit, or none."""
    features, places, valid = torch.randn(2, 330, 40).to(dtype), torch.rand(330, 2), torch.rand(2, 330) < 0.9
    kept = call("vic_cluster", features, places, 6.0, 0.5, 30, valid, semantics=semantics, **options)
    for limit in ("290", "200", "100", "-1"):
        monkeypatch.setenv("VITCOP_STORED_TOKENS", limit)
        again = call("vic_cluster", features, places, 6.0, 0.5, 30, valid, semantics=semantics, **options)
        assert_same_bits(again, kept)


def test_padding_may_leave_few_of_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens keep the distances of all pairs, more memory than a longer sample takes."""
    monkeypatch.setenv("VITCOP_STORED_TOKENS", "2048")
    features, places = torch.randn(2200, 4), torch.rand(2200, 2)
    valid = torch.arange(2200) % 11 > 0
    labels, centers, parent, rho, delta = call("vic_cluster", features, places, 1.0, 0.5, 100, valid)
    kept = valid.nonzero()[:, 0]
    alone = call("vic_cluster", features[valid], places[valid], 1.0, 0.5, 100)
    assert_same_bits([labels[valid], rho[valid], delta[valid]], [alone[0], *alone[3:]])
    assert torch.equal(centers, kept[alone[1]])
    assert torch.equal(parent[valid], torch.where(alone[2] < 0, -1, kept[alone[2]]))


@semantics_both
def test_long_samples_beside_shorter_ones(semantics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they share threads or take turns, memory fits the one that needs most, not the longest."""
    monkeypatch.setenv("VITCOP_STORED_TOKENS", "2048")
    features, cu = torch.randn(4200, 3), torch.tensor([0, 2100, 4100, 4200])
    for count in (1, 2, 3):
        with threads(count):
            got = call("vic_cluster_varlen", features, None, cu, 2100, 1.0, INF, 20, semantics=semantics)
            for b, (first, end) in enumerate(itertools.pairwise(cu.tolist())):
                alone = call("vic_cluster", features[first:end], None, 1.0, INF, 20, semantics=semantics)
                assert_same_bits([t[b] if k == 1 else t[first:end] for k, t in enumerate(got)], alone)


def test_varlen_layouts() -> None:
    lengths = [9, 4, 0, 12]
    features, places, cu = torch.randn(25, 16), torch.rand(25, 2), ragged(lengths)
    want = call("vic_cluster_varlen", features, places, cu, 12, 4.0, 0.5, 3)
    for name, view in layouts(features):
        assert_same_bits(call("vic_cluster_varlen", view, places, cu, 12, 4.0, 0.5, 3), want, name)
    for name, view in layouts(places):
        assert_same_bits(call("vic_cluster_varlen", features, view, cu, 12, 4.0, 0.5, 3), want, name)
    for name, view in layouts(cu):
        assert_same_bits(call("vic_cluster_varlen", features, places, view, 12, 4.0, 0.5, 3), want, name)


MALFORMED = {
    "does not start at 0": [1, 3, 6],
    "descends": [0, 4, 2],
    "does not end at T": [0, 2, 5],
    "too long": [0, 1, 6],
    "beyond": [0, 3, 9],
}


@pytest.mark.parametrize("cu", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_offsets_never_leave_the_range_in_the_reference(cu: list[int]) -> None:
    labels, centers, parent, _rho, _delta = reference(
        "vic_cluster_varlen", torch.randn(6, 4), None, torch.tensor(cu), 4, 4.0, INF, 2
    )
    assert labels.min() >= -1 and labels.max() < 2 and parent.max() < 4 and centers.max() < 4


def test_tokens_beyond_max_seqlen_are_of_no_sample_in_the_reference() -> None:
    got = reference("vic_cluster_varlen", torch.randn(6, 4), None, torch.tensor([0, 1, 6]), 4, 4.0, INF, 2)
    assert [t[5].item() for t in (got[0], got[2], got[3], got[4])] == [-1, -1, 0, INF]
    assert (got[0][:5] >= 0).all() and (got[3][1:5] > 0).all()
