"""The truths can fail an answer: wrong answers planted into right ones are caught, each by what it violates."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcop_kernels.testing.implementations import implementation
from vitcop_kernels.testing.judge import judge
from vitcop_kernels.testing.op import Case
from vitcop_kernels.testing.table import TABLE, case_of
from vitcop_kernels.testing.verdicts import Verdict

Change = Callable[[list[Tensor]], None]  # in place


def case(op: str, *args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Case:
    return Case(op, args, kwargs, dtype)


def verdict(of: Case, change: Change) -> Verdict:
    def planted(*args: Any, **kwargs: Any) -> Any:
        got = implementation("reference", of.op)(*args, **kwargs)
        one = isinstance(got, Tensor)
        answers = [got.clone()] if one else [t.clone() if isinstance(t, Tensor) else t for t in got]
        change(answers)
        return answers[0] if one else tuple(answers)

    return judge(of, ["reference"], {"reference": planted}).verdicts["reference"]


def untouched(answers: list[Tensor]) -> None:
    pass


def assert_caught(of: Case, change: Change, why: str) -> None:
    assert verdict(of, untouched).kind in ("exact", "certified"), verdict(of, untouched)
    found = verdict(of, change)
    assert found.kind == "mismatch" and why in found.why, found


def test_an_index_off_by_one_is_caught() -> None:
    def next_one(answers: list[Tensor]) -> None:
        answers[0][-1] += 1

    assert_caught(
        case("select_tokens", torch.tensor([1.0, 2.0, 0.0, 5.0]), 2, largest=False), next_one, "index[1] is 3"
    )


def test_a_swapped_tie_is_caught() -> None:
    def higher(answers: list[Tensor]) -> None:
        answers[0][:] = torch.tensor([0, 2])

    assert_caught(case("select_tokens", torch.tensor([0.0, 1.0, 1.0]), 2, largest=False), higher, "index[1] is 2")


@pytest.mark.parametrize("ulps", [1, 40])
def test_a_norm_is_caught_where_it_leaves_its_bound_and_no_earlier(ulps: int) -> None:
    """64 squares: 12 half ulps."""

    def off(answers: list[Tensor]) -> None:
        answers[0].view(torch.int32)[3] += ulps

    of = case("key_norms", torch.randn(2, 6, 32), heads="l2")
    if ulps > 1:
        assert_caught(of, off, "norms[3] is")
    else:
        found = verdict(of, off)
        assert found.kind == "certified" and 0 < found.error <= 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_number_that_is_none_is_caught(value: float) -> None:
    def spoiled(answers: list[Tensor]) -> None:
        answers[0][2] = value

    assert_caught(case("key_norms", torch.randn(2, 6, 32), heads="l2"), spoiled, "norms[2] is")
    query, key = torch.randn(2, 1, 8), torch.randn(2, 6, 8)
    assert_caught(case("attention_saliency", query, key, None, scale=None), spoiled, "saliency[2] is")


def test_a_copy_that_lost_its_sign_is_caught() -> None:
    x = torch.tensor([[-0.0], [1.0]])
    of = case(
        "segment_mean",
        x,
        torch.arange(2),
        torch.arange(3),
        torch.arange(2),
        torch.zeros(2, dtype=torch.bool),
        merge="mean",
    )
    assert_caught(of, lambda answers: answers[0].abs_(), "not its token")


def plan() -> Case:
    return case("plan_tokens", torch.arange(12) % 3, torch.arange(12.0), 3, 6, quota="exact", fill=True)


@pytest.mark.parametrize(("output", "name"), list(enumerate(["perm", "offsets", "anchors", "merged"])))
def test_a_wrong_plan_is_caught(output: int, name: str) -> None:
    def swapped(answers: list[Tensor]) -> None:
        answers[output][[0, -1]] = answers[output][[-1, 0]]

    assert_caught(plan(), swapped, name)


def test_a_wrong_dtype_or_shape_is_caught() -> None:
    def shorter(answers: list[Tensor]) -> None:
        answers[2] = answers[2].int()

    assert_caught(plan(), shorter, "torch.int32")


# --- clusterings ------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = dict(
    semantics="paper",
    metric="l2",
    dist_scale=1.0,
    density="gaussian",
    knn=5,
    include_self=None,
    assign="parent",
    root_delta="inf",
)


def clustering(x: Tensor, k: int, tau: float = math.inf, places: Tensor | None = None, **options: Any) -> Case:
    return case("vic_cluster", x, places, 3.0, tau, k, None, None, **OPTIONS | options)


def scattered(n: int = 40) -> Tensor:
    return torch.randn(n, 6) * 2


def test_a_wrong_label_is_caught() -> None:
    def other(answers: list[Tensor]) -> None:
        labels, centers = answers[0], set(answers[1].tolist())
        token = next(i for i in range(40) if i not in centers)
        labels[token] = (labels[token] + 1) % 5

    assert_caught(clustering(scattered(), 5), other, "chain of parents")
    assert_caught(clustering(scattered(), 5, assign="nearest"), other, "nearest centre")


def test_a_parent_that_is_farther_or_no_denser_is_caught() -> None:
    def root(answers: list[Tensor]) -> None:
        top = int(answers[2].eq(-1).nonzero()[0])
        token = int(((answers[2] >= 0) & (answers[2] != top)).nonzero()[-1])
        answers[2][token] = top

    def sparsest(answers: list[Tensor]) -> None:
        token = int((answers[2] >= 0).nonzero()[-1])
        answers[2][token] = answers[3].argmin() if int(answers[3].argmin()) != token else answers[3].argsort()[1]

    of = clustering(scattered(), 5)
    for change in (root, sparsest):
        found = verdict(of, change)
        assert found.kind == "mismatch" and "denser token" in found.why, found


def test_a_worse_centre_is_caught() -> None:
    def worst(answers: list[Tensor]) -> None:
        centers, rho, delta = answers[1], answers[3], answers[4]
        gamma = (rho * delta).tolist()
        last = min(range(40), key=gamma.__getitem__)
        root = int(answers[2].eq(-1).nonzero())
        centers[:] = torch.tensor(sorted({root, last}))

    assert_caught(clustering(scattered(), 2), worst, "is a better centre")


def test_a_largest_distance_that_float32_does_not_hold_is_no_infinite_gamma() -> None:
    x = (torch.randn(60, 15) * 1.3e38).clamp(-3e38, 3e38)
    of = clustering(x, 8, 0.1, torch.rand(60, 2), density="knn", root_delta="max")
    assert torch.ops.vitcop.vic_cluster(*of.args, **of.kwargs)[4].isinf().sum() > 1
    assert judge(of, ["reference", "native"]).verdicts["native"].kind != "mismatch"


def test_a_density_or_distance_beyond_its_bound_is_caught() -> None:
    def density(answers: list[Tensor]) -> None:
        answers[3][7] *= 1 + 1e-3

    def distance(answers: list[Tensor]) -> None:
        answers[4][answers[4] < math.inf] *= 1 + 1e-4

    assert_caught(clustering(scattered(), 5), density, "rho[7]")
    assert verdict(clustering(scattered(), 5), distance).kind == "mismatch"


def test_an_exact_tie_that_goes_to_the_higher_index_is_caught() -> None:
    """Duplicates: float rounding is no excuse."""
    x = scattered(20).repeat(2, 1)

    def later_parent(answers: list[Tensor]) -> None:
        """A token whose nearest denser one is the first of two duplicates gets the second."""
        parent = answers[2]
        token = next(i for i in range(20) if 0 <= int(parent[i]) < 20 and int(parent[i]) != i)
        parent[token] += 20

    found = verdict(clustering(x, 6), later_parent)
    assert found.kind == "mismatch" and "lower index" in found.why, found

    def later_center(answers: list[Tensor]) -> None:
        """Of two duplicates one is a centre: the second instead of the first."""
        centers = set(answers[1].tolist())
        first = next(i for i in range(20, 40) if i in centers and i + 20 not in centers)
        answers[1][:] = torch.tensor(sorted(centers - {first} | {first + 20}))

    found = verdict(clustering(scattered(20).repeat(3, 1), 29), later_center)
    assert found.kind == "mismatch" and "ties with it" in found.why, found


def test_densities_of_duplicates_that_differ_are_caught() -> None:
    def apart(answers: list[Tensor]) -> None:
        answers[3].view(torch.int32)[25] += 1

    assert_caught(clustering(scattered(20).repeat(2, 1), 6), apart, "duplicates")


def test_what_rounding_excuses_is_certified_and_no_more() -> None:
    """Two pairs, 20 pi apart, of nearly the same width: which is denser hangs on an error of the distances."""
    x = torch.tensor([[0.0], [1.0], [20.0], [21.0]]) * math.pi
    of = clustering(x, 2)

    def as_if(width: float, pair: int) -> Verdict:
        """The right answer to another question, in which one pair is as much narrower."""
        other = x.double()
        other[2 * pair + 1] -= math.pi * width
        answer = implementation("reference", "vic_cluster")(other, None, 3.0, math.inf, 2)
        single = tuple(t.float() if t.is_floating_point() else t for t in answer)
        return judge(of, ["native"], {"native": lambda *args, **kwargs: single}).verdicts["native"]

    assert {as_if(1e-6, pair).kind for pair in (0, 1)} == {"exact", "certified"}
    assert {as_if(1e-3, pair).kind for pair in (0, 1)} == {"mismatch"}


def test_sums_that_tie_in_exact_arithmetic_are_certified() -> None:
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in float64: which cluster stays whole is left open."""
    scores = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.2, 0.3, 5.0, 5.0], dtype=torch.float64)
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 2, 2])
    for quota in ("exact", "released"):
        of = case("plan_tokens", labels, scores, 3, 2, quota=quota, fill=True, dtype=torch.float64)
        assert verdict(of, untouched).kind in ("exact", "certified")
    kinds = set()
    for first in (0, 1):
        other = torch.where(labels == first, scores - 1e-3, scores)
        answer = implementation("reference", "plan_tokens")(labels, other, 3, 2)
        of = case("plan_tokens", labels, scores, 3, 2, quota="exact", fill=True, dtype=torch.float64)
        kinds.add(judge(of, ["reference"], {"reference": lambda *a, **k: answer}).verdicts["reference"].kind)  # noqa: B023
    assert kinds == {"exact", "certified"}


def test_a_case_is_a_function_of_op_and_seed() -> None:
    for op in TABLE:
        a, b = case_of(op, 123), case_of(op, 123)
        assert repr(a) == repr(b)
        assert repr(case_of(op, 124)) != repr(a)


def test_an_implementation_that_raises_or_writes_into_its_input_is_caught() -> None:
    of = case("key_norms", torch.randn(2, 6, 32), heads="l2")

    def raises(*args: Any, **kwargs: Any) -> Tensor:
        raise ValueError("no")

    def writes(keys: Tensor, heads: str) -> Tensor:
        answer = implementation("reference", "key_norms")(keys, heads=heads)
        keys[0, 0, 0] += 1
        return answer

    for call, why in ((raises, "raised ValueError: no"), (writes, "changed an input")):
        assert why in judge(of, ["reference"], {"reference": call}).verdicts["reference"].why
