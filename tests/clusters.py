"""Shared by the tests of vic_cluster and vic_cluster_varlen: inputs, options, and what it takes for two answers to
agree."""

import math
from typing import Any

import torch
from support import assert_right, both
from torch import Tensor

INF = math.inf
SEMANTICS = ("paper", "released")
OPTIONS: list[dict[str, Any]] = [
    {},
    dict(include_self=True),
    dict(include_self=False),
    dict(root_delta="max"),
    dict(assign="nearest"),
    dict(density="knn", knn=3),
    dict(density="knn", knn=1, include_self=True),
    dict(density="knn", knn=500, assign="nearest", root_delta="max"),
    dict(metric="cosine", dist_scale=3.0),
    dict(metric="cosine", density="knn", assign="nearest"),
    dict(dist_scale=0.25),
]


def option_name(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items()) or "default"


def grid(n: int, step: float = 1.0) -> Tensor:
    """The first n places of a square raster, in units of its side."""
    side = math.ceil(n**0.5)
    return torch.tensor([[i // side, i % side] for i in range(n)], dtype=torch.float32).reshape(n, 2) / side * step


def whole(n: int, width: int, top: int = 2) -> Tensor:
    return torch.randint(-top, top + 1, (n, width)).float()


def assert_same(got: Any, want: Any, exact_centers: bool = True, slack: float = 0.0) -> None:
    """Indices exactly; rho and delta to the error of float32 arithmetic on exact squared distances, `slack` more for
    delta."""
    labels, centers, parent, rho, delta = zip(got, want, strict=True)
    for name, (a, b) in dict(labels=labels, centers=centers, parent=parent).items():
        if exact_centers or name == "parent":
            assert torch.equal(a, b), f"{name}: {a.tolist()} instead of {b.tolist()}"
    levels = [t.double().log().clamp(min=-85.0) for t in rho]  # an error of d^2 is one of log rho
    torch.testing.assert_close(*levels, rtol=2.0**-20, atol=2.0**-20 + slack, msg=lambda m: f"rho: {m}")
    torch.testing.assert_close(
        *(t.double() for t in delta), rtol=2.0**-20, atol=1e-37 + slack, msg=lambda m: f"delta: {m}"
    )


def exact(
    features: Tensor, positions: Tensor | None, d_c: float, tau: float, num_centers: int, *rest: Any, **options: Any
) -> Any:
    got, want = both("vic_cluster", features, positions, d_c, tau, num_centers, *rest, **options)
    assert_same(got, want)
    return got


def certified(*args: Any, **options: Any) -> Any:
    """The kernel's answer and the reference's, both shown to be right."""
    both("vic_cluster", *args, **options)
    return assert_right("vic_cluster", *args, **options)
