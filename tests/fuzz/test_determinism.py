"""A slice of benchmarks.evidence.determinism, and that it would notice."""

import itertools
from typing import Any

import pytest
import torch
from support import NATIVE_OPS

from benchmarks.evidence.determinism.permutations import STATED, permuted
from benchmarks.evidence.determinism.runs import batched_cases, batches, kernel_cases, ragged, repeats, threads
from benchmarks.evidence.fuzz.cases import OPS
from benchmarks.evidence.fuzz.implementations import implementation

NAME = "native" if set(OPS) <= NATIVE_OPS else "reference"


@pytest.mark.parametrize("op", OPS)
def test_repeats_batches_and_threads_give_the_same_bits(op: str) -> None:
    call, cases = implementation(NAME, op), kernel_cases(op, 6, seed=500)
    assert repeats(call, cases, 60) == dict(runs=60, differ=0)
    assert threads(call, cases) == dict(runs=48, differ=0)
    of_batches = ragged(call, cases) if op == "vic_cluster_varlen" else batches(call, batched_cases(op, 4))
    assert of_batches["runs"] > 10 and of_batches["differ"] == 0


@pytest.mark.parametrize("op", OPS)
def test_permuting_tokens_does_what_is_stated(op: str) -> None:
    call, outcomes = implementation(NAME, op), []
    for seed, (n, dtype) in enumerate(itertools.product((12, 70), (torch.float32, torch.bfloat16, torch.float16))):
        outcomes.append(permuted(op, call, n, dtype, seed))
    assert "another answer" not in outcomes
    if "bit" in STATED[op] or op in ("select_tokens", "expand_plan"):
        assert set(outcomes) == {"same bits"}


def test_a_call_that_wavers_is_noticed() -> None:
    op = "key_norms"
    right, count = implementation("reference", op), itertools.count()

    def wavers(*args: Any, **kwargs: Any) -> torch.Tensor:
        return right(*args, **kwargs) * (1 + 2.0**-20 * (next(count) % 5 == 4))

    def minds_its_batch(keys: torch.Tensor, heads: str) -> torch.Tensor:
        return right(keys, heads=heads) * (1 + 2.0**-20 * (keys.dim() == 4 and keys.shape[0] > 3))

    def minds_threads(keys: torch.Tensor, heads: str) -> torch.Tensor:
        return right(keys, heads=heads) + torch.get_num_threads()

    def minds_places(keys: torch.Tensor, heads: str = "l2") -> torch.Tensor:
        return right(keys, heads=heads) + torch.arange(keys.shape[-2])

    cases = [case for case in batched_cases(op, 12) if case.args[0].numel()]
    assert repeats(wavers, cases, 60)["differ"] > 0
    assert batches(minds_its_batch, cases)["differ"] > 0
    assert threads(minds_threads, cases)["differ"] > 0
    assert permuted(op, minds_places, 20, torch.float32, 0) == "another answer"
