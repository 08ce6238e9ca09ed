"""A slice of verification.determinism, and that it would notice."""

import itertools
from typing import Any

import pytest
import torch

import vitcop_kernels
from verification.determinism import batched_cases, batches, kernel_cases, ragged, repeats, threads
from vitcop_kernels.testing.implementations import implementation
from vitcop_kernels.testing.permutation import Shuffle
from vitcop_kernels.testing.table import TABLE

OPS, NAME = tuple(TABLE), "reference" if vitcop_kernels.native_error else "native"


@pytest.mark.parametrize("op", OPS)
def test_repeats_batches_and_threads_give_the_same_bits(op: str) -> None:
    call, cases = implementation(NAME, op), kernel_cases(op, 6, seed=500)
    assert repeats(call, cases, 60) == dict(runs=60, differ=0)
    assert threads(call, cases) == dict(runs=48, differ=0)
    of_batches = batches(call, batched_cases(op, 4)) if TABLE[op].batched else ragged(call, cases)
    assert of_batches["runs"] > 10 and of_batches["differ"] == 0


@pytest.mark.parametrize("op", OPS)
def test_permuting_tokens_does_what_is_stated(op: str) -> None:
    call, outcomes = implementation(NAME, op), []
    for seed, (n, dtype) in enumerate(itertools.product((12, 70), (torch.float32, torch.bfloat16, torch.float16))):
        outcomes.append(TABLE[op].permute(call, Shuffle(n, seed), dtype))
    assert "another answer" not in outcomes
    if "bit" in TABLE[op].permuted or op in ("select_tokens", "expand_plan"):
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
    assert TABLE[op].permute(minds_places, Shuffle(20, 0), torch.float32) == "another answer"
