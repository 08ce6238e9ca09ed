"""References with one thing wrong: a few dozen cases of the campaign notice each of them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.evidence.fuzz.campaign import chunks, run

# A folder's function hides the folder's name, so `import ... as` does not reach the modules.
attention, clusters, plans, selection = (
    import_module(f"vitcop_kernels.ops.{op}.reference")
    for op in ("attention_saliency", "vic_cluster", "plan_tokens", "select_tokens")
)
INF = float("inf")


def last_min(values: Tensor) -> tuple[Tensor, Tensor]:
    low = values.amin(-1)
    return low, values.shape[-1] - 1 - (values == low[..., None]).flip(-1).long().argmax(-1)


def higher_index_is_denser(log_rho: Tensor, released: bool) -> Tensor:
    mine, other = log_rho[:, :, None], log_rho[:, None, :]
    if released:
        return other >= mine
    index = torch.arange(log_rho.shape[-1])
    return (other > mine) | ((other == mine) & (index[None, :] > index[:, None]))


def boundary_outside(positions: Tensor | None, tau: float) -> Tensor:
    if positions is None or tau == INF:
        return torch.ones((), dtype=torch.bool)
    p = positions.double()
    return (p.unsqueeze(-2) - p.unsqueeze(-3)).square().sum(-1) < tau * tau * (1 - 1e-6)


def float32_distances(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The Gram form in float32, which cancels for near duplicates."""

    def wrong(features: Tensor, real: Tensor, metric: str, scale: float, released: bool) -> Tensor:
        if metric == "cosine":
            return right(features, real, metric, scale, released)
        x = features.float().masked_fill(~real[..., None], 0.0)
        norm = x.square().sum(-1)
        gram = (norm[:, :, None] + norm[:, None, :] - 2 * x @ x.mT).clamp(min=0).double() * scale**2
        return gram.masked_fill(~(real[:, None, :] & real[:, :, None]), INF)

    return wrong


def rho_underflows(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: right(*args).float().exp().double().log()


def ties_to_the_last(scores: Tensor, largest: bool = False) -> Tensor:
    flipped = torch.argsort((-scores if largest else scores).flip(-1) + 0.0, dim=-1, stable=True)
    return scores.shape[-1] - 1 - flipped


def nan_is_best(scores: Tensor, largest: bool = False) -> Tensor:
    return torch.argsort((-scores if largest else scores).nan_to_num(-INF), dim=-1, stable=True)


def no_remainders(count: Tensor, missing: Tensor, remainder: Tensor, size: Tensor) -> Tensor:
    return DEAL(count, missing, torch.zeros_like(remainder), size)


DEAL, DISTANCES, DENSITY = plans._deal_missing, clusters._squared_distances, clusters._log_density
MUTANTS: dict[str, tuple[str, Any, str, Any]] = {
    "the higher index of equal distances": ("vic_cluster", clusters, "_first_min", last_min),
    "the higher index of equal densities": ("vic_cluster", clusters, "_denser", higher_index_is_denser),
    "tau without its boundary": ("vic_cluster", clusters, "_near", boundary_outside),
    "distances that cancel": ("vic_cluster", clusters, "_squared_distances", float32_distances(DISTANCES)),
    "densities that underflow": ("vic_cluster", clusters, "_log_density", rho_underflows(DENSITY)),
    "ragged samples, equal densities": ("vic_cluster_varlen", clusters, "_denser", higher_index_is_denser),
    "the last of equal scores": ("select_tokens", selection, "argsort_best_first", ties_to_the_last),
    "NaN before numbers": ("select_tokens", selection, "argsort_best_first", nan_is_best),
    "elites: the last of equal scores": ("plan_tokens", plans, "argsort_best_first", ties_to_the_last),
    "quotas dealt without remainders": ("plan_tokens", plans, "_deal_missing", no_remainders),
    "saliencies in bfloat16": ("attention_saliency", attention, "acc_dtype", lambda dtype: torch.bfloat16),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, module, function, wrong = MUTANTS[mutant]
    work = chunks([op], 120, seed=2001)
    assert not run(work, ["reference"]).mismatches
    monkeypatch.setattr(module, function, wrong)
    assert run(work, ["reference"]).by()["mismatch"] >= 2
