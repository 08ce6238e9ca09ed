"""Is a clustering right that is too large for a float64 matrix of N x N? Some tokens are held against all others."""

import torch

from vitcop_kernels.bench.cases import Case
from vitcop_kernels.bench.measure import WrongAnswer, gate
from vitcop_kernels.bench.truth import RELATIVE

WHOLE = 2304  # up to so many tokens the whole answer is compared
TOKENS = 24
TIE = 1e-5  # densities this close may be ranked either way: float32 sums of up to 16384 terms


def checked(case: Case) -> object:
    """The answer. Raises WrongAnswer."""
    if case.op != "vic_cluster" or case.dims["tokens"] <= WHOLE:
        return gate(case)
    answer = case.run()
    for b, features in enumerate(case.args[0]):
        _certify(case, features, [t[b] for t in answer])
    return answer


def _certify(case: Case, features: torch.Tensor, answer: list[torch.Tensor]) -> None:
    """Density, parent, distance and label of a few tokens, from their float64 distances to every token."""
    places, d_c, tau, num_centers = case.args[1:5]
    labels, centers, parent, rho, delta = answer
    n = features.shape[0]

    def require(ok: bool, i: int, what: str) -> None:
        if not ok:
            raise WrongAnswer(f"{case.name}: token {i}: {what}")

    require(bool((labels[centers] == torch.arange(num_centers)).all()), 0, "a centre has not its own label")
    is_center = torch.zeros(n, dtype=torch.bool).scatter_(0, centers, True)
    for i in torch.linspace(0, n - 1, TOKENS).long().tolist():
        d2 = (features - features[i]).double().square().sum(-1)
        others = torch.ones(n, dtype=torch.bool)
        others[i] = False
        density = (-d2[others] / d_c**2).exp().sum()
        # A relative error of d^2 counts d^2/d_c^2 times in the density; below 32 of them here.
        require(bool((rho[i].double() / density - 1).abs() < 32 * RELATIVE), i, "rho is not the density")
        p = int(parent[i])
        require(p >= 0 or bool(rho[i] >= rho.max() * (1 - TIE)), i, "no parent, but not the densest")
        if p < 0:
            continue
        require(bool(rho[p] >= rho[i] * (1 - TIE)), i, "its parent is less dense")
        near = (places - places[i]).double().square().sum(-1) <= tau * tau * (1 + 1e-6)
        rivals = others & (rho > rho[i] * (1 + TIE))
        if delta[i].isfinite():
            require(bool(near[p]), i, "its parent is beyond tau")
            require(bool((delta[i].double() - d2[p].sqrt()).abs() <= RELATIVE * d2[p].sqrt()), i, "delta is not d")
            rivals &= near
        else:
            require(not bool((rivals & near).any()), i, "delta is inf, but a denser token is near")
        require(not bool((rivals & (d2 < d2[p] * (1 - RELATIVE))).any()), i, "a nearer denser token was passed over")
        require(bool(is_center[i]) or bool(labels[i] == labels[p]), i, "its label is not that of its parent")
