"""Invariants that hold for any input, searched for counterexamples by hypothesis."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import op_of

from vitcop_kernels.testing.values import best_first

moderate = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
namespaces = pytest.mark.parametrize("namespace", ["vitcop", "vitcop_reference"])
scores = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e30]),
)


@st.composite
def plans(draw: Any) -> tuple[list[int], list[float], int, int]:
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    label = st.integers(0, k - 1) if draw(st.booleans()) else st.integers(-1, k)
    labels = draw(st.lists(label, min_size=n, max_size=n))
    return labels, draw(st.lists(scores, min_size=n, max_size=n)), k, draw(st.integers(1, n + 2))


def run(namespace: str, plan: tuple, quota: str, fill: bool = True) -> tuple[list, list, list, list]:
    labels, values, k, budget = plan
    result = op_of(namespace, "plan_tokens")(
        torch.tensor(labels), torch.tensor(values), k, budget, quota=quota, fill=fill
    )
    return tuple(t.tolist() for t in result)


@namespaces
@pytest.mark.parametrize("quota", ["exact", "floor", "released"])
@moderate
@given(plan=plans(), fill=st.booleans())
def test_a_plan_is_a_partition_with_one_anchor_each(namespace: str, quota: str, plan: tuple, fill: bool) -> None:
    labels, _values, k, budget = plan
    n = len(labels)
    perm, offsets, anchors, merged = run(namespace, plan, quota, fill)
    segments = [perm[a:b] for a, b in itertools.pairwise(offsets)]
    used = [s for s in segments if s]
    clustered = [i for i in range(n) if 0 <= labels[i] < k or quota == "released"]

    assert sorted(perm) == list(range(n))
    assert len(segments) == len(anchors) == len(merged) == min(budget, n)
    assert offsets[0] == 0 and offsets[-1] == len(clustered) and offsets == sorted(offsets)
    assert sorted(i for s in used for i in s) == clustered
    assert perm[offsets[-1] :] == [i for i in range(n) if i not in clustered], "dropped tokens last, ascending"
    assert segments[: len(used)] == used, "empty segments last"
    for segment, anchor, is_merged in zip(segments, anchors, merged, strict=True):
        assert segment == sorted(segment)
        assert anchor == (segment[len(segment) // 2] if segment else -1)
        assert is_merged or len(segment) <= 1
    live = anchors[: len(used)]
    assert live == sorted(set(live)) and set(anchors[len(used) :]) <= {-1}
    if quota == "exact" or (quota == "floor" and fill):
        assert len(used) == min(budget, len(clustered))
    if budget >= len(clustered):
        assert not any(merged)


@namespaces
@pytest.mark.parametrize("quota", ["exact", "floor", "released"])
@moderate
@given(plan=plans())
def test_elites_are_the_best_of_their_cluster_and_quotas_keep_within_caps(
    namespace: str, quota: str, plan: tuple
) -> None:
    labels, values, k, budget = plan
    clusters: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        inside = 0 <= label < k
        if inside or quota == "released":
            clusters.setdefault(label if inside else -1, []).append(i)
    n = sum(map(len, clusters.values()))
    if not len(clusters) <= budget < n:
        return
    _, _, anchors, merged = run(namespace, plan, quota, fill=False)
    elites = {a for a, m in zip(anchors, merged, strict=True) if a >= 0 and not m}
    spare, order = budget - len(clusters), best_first(np.array(values), False).tolist()
    for members in clusters.values():
        count = len(elites & set(members))
        best = [i for i in order if i in members]
        assert elites & set(members) == set(best[:count]), "not the best of the cluster"
        assert count <= len(members) - 1, "no one is left to merge"
        floor = len(members) * spare // n
        if quota == "floor":
            assert count == floor
        elif quota == "exact":
            assert count >= floor
    if quota == "exact":
        assert len(elites) == spare


@namespaces
@moderate
@given(values=st.lists(scores, min_size=1, max_size=60), largest=st.booleans(), data=st.data())
def test_no_token_left_out_is_better_than_a_chosen_one(
    namespace: str, values: list[float], largest: bool, data: Any
) -> None:
    k = data.draw(st.integers(0, len(values)))
    index = op_of(namespace, "select_tokens")(torch.tensor(values), k, largest=largest).tolist()
    assert index == sorted(set(index)) and len(index) == k
    place = {i: p for p, i in enumerate(best_first(torch.tensor(values).double().numpy(), largest).tolist())}
    left = set(range(len(values))) - set(index)
    assert max((place[i] for i in index), default=-1) < min((place[i] for i in left), default=math.inf)


@namespaces
@settings(parent=moderate, max_examples=60)
@given(data=st.data(), n=st.integers(1, 30), width=st.integers(1, 3), semantics=st.sampled_from(["paper", "released"]))
def test_a_clustering_is_a_forest_of_denser_parents(
    namespace: str, data: Any, n: int, width: int, semantics: str
) -> None:
    feature = st.one_of(
        st.integers(-3, 3).map(float), st.floats(-100, 100, width=32), st.sampled_from([math.nan, math.inf])
    )
    features = torch.tensor(
        data.draw(st.lists(st.lists(feature, min_size=width, max_size=width), min_size=n, max_size=n))
    )
    k, tau = data.draw(st.integers(1, n)), data.draw(st.sampled_from([0.0, 0.3, 0.7, math.inf]))
    places = torch.arange(n, dtype=torch.float32)[:, None] / n
    result = op_of(namespace, "vic_cluster")(features, places, 2.0, tau, k, semantics=semantics)
    labels, centers, parent, rho, delta = (t.tolist() for t in result)
    assert centers == sorted(set(centers)) and len(centers) == k and all(0 <= c < n for c in centers)
    assert [labels[c] for c in centers] == list(range(k))
    assert all(-1 <= x < k for x in labels) and all(-1 <= p < n for p in parent)
    assert not any(map(math.isnan, rho + delta)) and all(r >= 0 for r in rho) and all(d >= 0 for d in delta)
    if semantics == "released":
        return
    assert parent.count(-1) == 1 and labels == [
        labels[p] if p >= 0 and i not in centers else labels[i] for i, p in enumerate(parent)
    ]
    assert min(labels) >= 0 and parent.index(-1) in centers
    for i in range(n):  # no cycles
        steps = 0
        while i >= 0 and steps <= n:
            i, steps = parent[i], steps + 1
        assert steps <= n


@namespaces
@settings(parent=moderate, max_examples=60)
@given(plan=plans(), width=st.integers(1, 20), merge=st.sampled_from(["mean", "anchor_plus_mean"]))
def test_a_merged_token_lies_among_its_members(namespace: str, plan: tuple, width: int, merge: str) -> None:
    perm, offsets, anchors, merged = (torch.tensor(t) for t in run(namespace, plan, "exact"))
    x = torch.randn(len(plan[0]), width)
    y = op_of(namespace, "segment_mean")(x, perm, offsets, anchors, merged.bool(), merge=merge)
    for s in range(len(anchors)):
        members = x[perm[offsets[s] : offsets[s + 1]]]
        if not len(members):
            assert y[s].eq(0).all()
            continue
        mean = y[s] - x[anchors[s]] if merge == "anchor_plus_mean" and merged[s] else y[s]
        slack = 1e-5 * x.abs().max()  # float32 rounding of the sum, of the addition and of the subtraction here
        assert (mean >= members.amin(0) - slack).all() and (mean <= members.amax(0) + slack).all()
