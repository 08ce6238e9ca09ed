"""The measures of studies.real_features on tokens whose answers are known."""

import math

import numpy as np
import pytest
import torch

from studies.real_features import measure
from studies.real_features.measure import Tokens
from vitcop_kernels.testing.certificate import KERNEL
from vitcop_kernels.testing.clusters import Options, Sample, cluster


def places(side: int) -> torch.Tensor:
    index = torch.arange(side**2)
    return torch.stack([index // side, index % side], 1) / side


def test_orphans_are_those_of_the_truth() -> None:
    features, positions = 6 * torch.randn(36, 4), places(6)
    counts = []
    for tau in (0.17, 0.3, 0.6, math.inf):
        arrays = (features.double().numpy(), positions.double().numpy())
        want = cluster(Sample(*arrays, measure.D_C, tau, np.ones(36, bool), Options()), 1)
        counts.append(measure.orphans(features, positions, tau))
        assert counts[-1] == sum(math.isinf(delta) for delta in want.delta)
    assert counts[0] > counts[-1] == 1


def test_duplicates_and_ties_are_counted() -> None:
    features = torch.randn(16, 5)
    clean = measure.geometry(features, places(4))
    assert (clean["duplicates"], clean["ties_truth"], clean["ties_float32"]) == (0, 0, 0)
    features[3] = features[11] = features[7]
    found = measure.geometry(features, places(4))
    assert (found["duplicates"], found["ties_truth"], found["ties_float32"]) == (2, 2, 2)


def test_where_densities_vanish() -> None:
    """A row of tokens 100 apart: exp(-(100 / d_c)^2) is 0 in float32 for d_c below 100 / sqrt(149 ln 2) = 9.84."""
    features = torch.arange(5.0)[:, None] * 100
    assert measure.density(features, 9.6)["vanished"] == 1
    assert measure.density(features, 10.0)["vanished"] == 0
    assert measure.geometry(features, places(3)[:5])["vanishing_d_c"] == pytest.approx(9.84, abs=0.005)
    ends = math.log10(math.exp(-((100 / 9.6) ** 2)))  # two tokens have one neighbour, the others two
    assert measure.density(features, 9.6)["log10_min"] == pytest.approx(ends, abs=1e-3)


def test_chains_and_pairs() -> None:
    assert measure.chain_lengths([1, 2, -1, 2, 3], {2}) == [2, 1, 0, 1, 2]
    assert measure.chain_lengths([1, 2, -1, 2, 3], {2, 3}) == [2, 1, 0, 0, 1]
    labels, index = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 5])  # of 3 x 3: 0-1, 1-2 and 2-5 touch
    found = measure.together(labels, index, 3)
    assert found == {"touching": pytest.approx(2 / 3), "all": pytest.approx(1 / 3)}


def test_disagreement_shows() -> None:
    features, positions = torch.randn(25, 8), places(5)
    truth = measure.cluster_truth(features, positions, 3.0, 0.6, 4)
    assert all(measure.agreement(truth, truth, features)[part] == 1 for part in ("labels", "centers", "parent"))
    wrong = [t.clone() for t in truth]
    at = int(truth[2].argmin())  # the root
    other = (at + 1) % 25
    wrong[0][other] += 1
    wrong[4][other] *= 1.01
    wrong[3][other] *= 1.5
    found = measure.agreement(tuple(wrong), truth, features)
    assert (found["labels"], found["parent"]) == (24 / 25, 1)
    assert found["rho_error"] == pytest.approx(0.5)
    assert found["d2_error"] == pytest.approx(1.01**2 - 1) or truth[4][other].isinf()


def test_attention_even_and_on_one_patch() -> None:
    key = torch.zeros(1, 101, 4)
    tokens = Tokens(torch.ones(1, 1, 4), key, torch.ones(101), 10)
    even = measure.attention(tokens)
    assert even["top"]["0.3"] == pytest.approx(0.3)
    assert even["effective_share"] == pytest.approx(1)
    assert even["cls_itself"] == pytest.approx(1 / 101)
    key[0, 7] = 100
    peaked = measure.attention(tokens)
    assert peaked["top"]["0.01"] == pytest.approx(1)
    assert peaked["cls_itself"] == 0


def test_the_stated_error_is_the_one_that_certificates_use() -> None:
    assert KERNEL.distance == measure.STATED
