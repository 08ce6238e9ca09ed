"""Density-peak clustering (Eq. 2-3, Algorithm 2) in float64, batched, with no value read on the host.

Distances are true differences; densities live in the log domain, where nothing underflows, and their sums do not
depend on the order of the tokens, so that exact duplicates tie exactly.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitcop_kernels._order import acc_dtype

INF = float("inf")


class Clusters(NamedTuple):
    labels: Tensor  # [B, N]
    centers: Tensor  # [B, num_centers]
    parent: Tensor  # [B, N]
    rho: Tensor  # [B, N]
    delta: Tensor  # [B, N]


def vic_cluster(
    features: Tensor,
    positions: Tensor | None,
    d_c: float,
    tau: float,
    num_centers: int,
    valid: Tensor | None = None,
    center_counts: Tensor | None = None,
    **options: Any,
) -> Clusters:
    if features.dim() == 3:
        return _cluster(features, positions, d_c, tau, num_centers, valid, center_counts, **options)
    valid, center_counts = (None if t is None else t[None] for t in (valid, center_counts))
    batch = _cluster(features[None], positions, d_c, tau, num_centers, valid, center_counts, **options)
    return Clusters(*(t[0] for t in batch))


def _cluster(
    features: Tensor,
    positions: Tensor | None,
    d_c: float,
    tau: float,
    num_centers: int,
    valid: Tensor | None,
    center_counts: Tensor | None,
    *,
    semantics: str = "paper",
    metric: str = "l2",
    dist_scale: float = 1.0,
    density: str = "gaussian",
    knn: int = 5,
    include_self: bool | None = None,
    assign: str = "parent",
    root_delta: str = "inf",
) -> Clusters:
    released = semantics == "released"
    n = features.shape[1]
    real = features.isfinite().all(-1)  # [B, N]
    if valid is None:
        valid = torch.ones_like(real)
    real = real & valid
    d2 = _squared_distances(features, real, metric, dist_scale, released)  # [B, N, N], inf off the real tokens

    log_rho = _log_density(d2, real, d_c, density, knn, released if include_self is None else include_self)
    rho = log_rho.exp().to(acc_dtype(features.dtype))
    if released:
        rho = rho.to(torch.float32)
        log_rho = rho.double().log()  # the authors rank densities as float32 has them
    own = torch.eye(n, dtype=torch.bool, device=features.device)
    denser = _denser(log_rho, released) & valid[:, None, :] & ~own  # [B, i, j]: j is denser than i

    nearest = torch.where(denser & _near(positions, tau), d2, INF)
    delta2, parent = _first_min(nearest)
    orphan = delta2 == INF
    if released:
        parent = parent.masked_fill(orphan, 0)
    else:
        anywhere, nearest_anywhere = _first_min(torch.where(denser, d2, INF))
        root = valid & ~denser.any(-1)  # [B, N]: the densest token
        nearest_anywhere = torch.where(anywhere == INF, root.long().argmax(-1, keepdim=True), nearest_anywhere)
        parent = torch.where(orphan, nearest_anywhere, parent).masked_fill(root, -1)
    if root_delta == "max":
        widest = d2.masked_fill(d2 == INF, 0.0).amax(dim=(-2, -1))  # [B]
        delta2 = torch.where(orphan, widest[:, None], delta2)

    order = _order_as_released(rho, delta2, real, valid) if released else _order_by_gamma(log_rho, delta2, valid, root)
    is_center, centers = _centers(order, valid, num_centers, center_counts)
    label = _label_of_nearest(d2, is_center) if assign == "nearest" else _label_of_chain(parent, is_center)
    parent = parent.masked_fill(~valid, -1)
    delta = delta2.sqrt().masked_fill(~valid, INF).to(acc_dtype(features.dtype))
    return Clusters(label.masked_fill(~valid, -1), centers, parent, rho.to(acc_dtype(features.dtype)), delta)


def _squared_distances(features: Tensor, real: Tensor, metric: str, dist_scale: float, released: bool) -> Tensor:
    x = features.to(torch.float64).masked_fill(~real[..., None], 0.0)
    if x.shape[-1] == 0:
        x = x.new_zeros((*x.shape[:-1], 1))  # no features: all alike
    if metric == "cosine":  # 1 - cos = |u - v|^2 / 2, which does not cancel for near-duplicates
        x = x / x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        x = x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    d2 = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    # The square of a root is off by an ulp, which would break exact ties of sums: drop the last six bits (Veltkamp).
    d2 = torch.where(d2 < 1e300, d2 * 65 - (d2 * 65 - d2), d2)
    if metric == "cosine":
        d2 = (d2 / 2).square()
    if released:  # the authors take sqrt(d^2 + 1e-8) off the diagonal
        d2 = d2 + 1e-8 * (1 - torch.eye(x.shape[1], dtype=d2.dtype, device=d2.device))
    d2 = d2 * dist_scale**2
    return d2.masked_fill(~(real[:, None, :] & real[:, :, None]), INF)


def _log_density(d2: Tensor, real: Tensor, d_c: float, density: str, knn: int, include_self: bool) -> Tensor:
    """[B, N] float64; -inf for a token that is near nothing."""
    own = torch.eye(d2.shape[-1], dtype=torch.bool, device=d2.device)
    d2 = d2 if include_self else d2.masked_fill(own, INF)
    ascending = d2.sort(dim=-1).values  # equal multisets become equal rows, so duplicates get equal sums
    # Running sums of sorted terms: the order of the tokens and padding beyond them change no bit.
    if density == "knn":
        ascending = ascending[..., :knn]
        count = ascending.isfinite().sum(-1)
        total = ascending.masked_fill(ascending == INF, 0.0).cumsum(-1)[..., -1]
        log_rho = torch.where(count > 0, -total / count.clamp(min=1), -INF)
    else:
        low = ascending[..., :1].nan_to_num(posinf=0.0)  # log-sum-exp around the nearest
        total = ((low - ascending) / d_c / d_c).exp().cumsum(-1)[..., -1]
        log_rho = total.log() - low[..., 0] / d_c / d_c
    return log_rho.masked_fill(~real, -INF)


def _denser(log_rho: Tensor, released: bool) -> Tensor:
    """[B, i, j]: j comes before i in the order of density."""
    mine, other = log_rho[:, :, None], log_rho[:, None, :]
    if released:
        return other >= mine
    index = torch.arange(log_rho.shape[-1], device=log_rho.device)
    return (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))


def _near(positions: Tensor | None, tau: float) -> Tensor:
    """[B, i, j] or something that broadcasts: within tau, the boundary included."""
    if positions is None or tau == INF:
        return torch.ones((), dtype=torch.bool, device=None if positions is None else positions.device)
    p = positions.to(torch.float64)
    gap2 = (p.unsqueeze(-2) - p.unsqueeze(-3)).square().sum(-1)
    return gap2 <= tau * tau * (1 + 1e-6)  # grid positions fall on the boundary


def _first_min(values: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum over the last dimension and the lowest index that has it (argmin promises none on every device)."""
    low = values.amin(-1)
    return low, (values == low[..., None]).long().argmax(-1)


def _order_by_gamma(log_rho: Tensor, delta2: Tensor, valid: Tensor, root: Tensor) -> Tensor:
    """Tokens from best to worst centre: the densest, then by (gamma, rho, lower index), padding last."""
    log_gamma = torch.where(delta2 == INF, INF, log_rho + 0.5 * delta2.log())
    log_gamma = log_gamma.masked_fill(log_rho == -INF, -INF)  # near nothing: the worst centre
    group = torch.where(valid, 1, 2).masked_fill(root, 0)
    order = (-log_rho).argsort(dim=-1, stable=True)
    for key in (-log_gamma, group):
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    return order


def _order_as_released(rho: Tensor, delta2: Tensor, real: Tensor, valid: Tensor) -> Tensor:
    """The authors' `argsort(-gamma)`, ties and all.

    It is not stable: equal (say, infinite) gammas come out in an order of torch's own, and only the same call gives the
    same centres.
    """
    delta = delta2.sqrt().to(rho.dtype)
    gamma = torch.where(delta == INF, INF, rho * delta)  # a distance may be too large for float32 alone
    gamma = gamma.masked_fill(~real, -1.0).masked_fill(~valid, -INF)
    order = torch.empty(gamma.shape, dtype=torch.int64, device=gamma.device)
    for sample, key in zip(order, -gamma, strict=True):  # row by row, so that a batch cannot change the order of ties
        sample.copy_(torch.argsort(key))
    return order


def _centers(order: Tensor, valid: Tensor, num_centers: int, center_counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mask of the centres [B, N] and their indices [B, num_centers], ascending, then -1."""
    index = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, index)
    count: int | Tensor = num_centers
    if center_counts is not None:
        count = center_counts.to(torch.int64).clamp(1, num_centers)[:, None]
    is_center = valid & (place < count)
    rank = torch.where(is_center, is_center.cumsum(-1) - 1, num_centers)
    centers = rank.new_full((rank.shape[0], num_centers + 1), -1).scatter_(-1, rank, index)
    return is_center, centers[:, :-1].contiguous()


def _label_of_chain(parent: Tensor, is_center: Tensor) -> Tensor:
    """Label of the centre at the end of each parent chain, by pointer jumping; -1 where a cycle has no centre."""
    index = torch.arange(parent.shape[-1], device=parent.device)
    pointer = torch.where(is_center | (parent < 0), index, parent)
    for _ in range(max(1, (parent.shape[-1] - 1).bit_length())):
        pointer = pointer.gather(-1, pointer)
    ordinal = torch.where(is_center, is_center.cumsum(-1) - 1, -1)
    return ordinal.gather(-1, pointer)


def _label_of_nearest(d2: Tensor, is_center: Tensor) -> Tensor:
    """Label of the nearest centre (ties: the lower one; all infinitely far: the first); a centre keeps its own."""
    ordinal = is_center.cumsum(-1) - 1
    low, nearest = _first_min(torch.where(is_center[:, None, :], d2, INF))
    label = ordinal.gather(-1, nearest).masked_fill(low == INF, 0)
    return torch.where(is_center, ordinal, label)
