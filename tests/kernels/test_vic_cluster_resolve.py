"""Labels of samples that do not fit into registers: block by block, the same as all at once."""

import pytest
import torch
import triton
import triton.language as tl

from vitcop_kernels.ops.vic_cluster.device import STATE, WIDE
from vitcop_kernels.ops.vic_cluster.resolve import resolve_in_blocks, resolve_whole


@triton.jit
def both_kernel(
    p_norm,
    p_log,
    p_best,
    p_d2,
    p_par,
    p_cen,
    p_state,
    p_labels,
    p_parent,
    p_centers,
    p_total,
    n,
    BLOCKS: tl.constexpr,
    RELEASED: tl.constexpr,
    NP: tl.constexpr,
    JUMPS: tl.constexpr,
):
    if BLOCKS:
        total = resolve_in_blocks(
            p_norm,
            p_log,
            p_best,
            p_d2,
            p_par,
            p_cen,
            p_state,
            p_labels,
            p_parent,
            p_centers,
            n,
            1.0,
            False,
            0.0,
            RELEASED,
            NP,
            JUMPS,
            32,
        )
    else:
        total = resolve_whole(
            p_norm,
            p_log,
            p_best,
            p_d2,
            p_par,
            p_cen,
            p_state,
            p_labels,
            p_parent,
            p_centers,
            n,
            1.0,
            False,
            0.0,
            RELEASED,
            NP,
            JUMPS,
        )
    tl.store(p_total, total)


def sample(n: int, released: bool, seed: int) -> dict[str, torch.Tensor]:
    """A forest over shuffled tokens, some of them not there, some with equal densities; released: cycles as well."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    parent = torch.full((n,), -1, dtype=torch.int32)
    for rank in range(1, n):
        parent[order[rank]] = order[int(torch.randint(rank, (1,), generator=generator))]
    if released:
        some = torch.randint(n, (6,), generator=generator)
        parent[some] = some.roll(1).int()
    log = torch.empty(n, dtype=torch.float64)
    log[order] = -(torch.arange(n) // 2).double()  # pairs of ties
    norm = torch.ones(n)
    absent = torch.rand(n, generator=generator) < 0.1
    absent[order[0]] = False
    norm[absent] = -1.0
    centers = (torch.rand(n, generator=generator) < 0.15) & ~absent
    centers[order[0]] = True
    state = torch.zeros(STATE.value, dtype=torch.int64)
    state[WIDE.value] = 1  # delta^2 and parents are read as they are
    return {
        "norm": norm,
        "log": log,
        "best": torch.zeros(n, dtype=torch.int64),
        "d2": torch.rand(n).double(),
        "par": parent,
        "cen": centers.int(),
        "state": state,
    }


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 200])
def test_block_by_block_is_all_at_once(n: int, released: bool) -> None:
    for seed in range(3):
        found = []
        for blocks in (False, True):
            held = sample(n, released, seed)
            labels, parents, centers = torch.full((3, n), -7, dtype=torch.int64)
            total = torch.zeros(1, dtype=torch.int32)
            both_kernel[(1,)](
                *held.values(),
                labels,
                parents,
                centers,
                total,
                n,
                BLOCKS=blocks,
                RELEASED=released,
                NP=256,
                JUMPS=8,
            )
            found.append((labels, parents, centers, total))
        for whole, block in zip(*found, strict=True):
            assert torch.equal(whole, block)
        assert found[0][3] >= 1 and (found[0][0] >= -1).all()
