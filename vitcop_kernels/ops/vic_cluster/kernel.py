"""Launches the clustering kernels: one cooperative launch where all its programs fit the device, else one a phase."""

import struct
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitcop_kernels._occupancy import resident_programs
from vitcop_kernels._triton import UPCAST, cdiv, is_hip, launch, next_power_of_2, plain_options

from . import phases as k
from .device import SLAB, STATE
from .rare import Args, nearest_centers, neighbour_densities, released_centers, unit_rows

MAX_TOKENS = 16384  # of a sample: labels are resolved by one program
STORED_BYTES = 64 << 20  # scratch for distance tiles; beyond it they are recomputed
INF = float("inf")


class Problem(NamedTuple):
    """One call: samples of at most `longest` rows of features."""

    features: Tensor  # [B, N, D] or packed [T, D]
    positions: Tensor | None  # [B, N, P], [N, P] or packed [T, P]
    cu_seqlens: Tensor | None
    valid: Tensor | None  # [B, N]
    counts: Tensor | None  # [B]
    batch: int
    longest: int
    d_c: float
    tau: float
    num_centers: int


def vic_cluster(
    features: Tensor,
    positions: Tensor | None,
    d_c: float,
    tau: float,
    num_centers: int,
    valid: Tensor | None = None,
    center_counts: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    if features.dim() == 2:
        batch = (features[None], positions, d_c, tau, num_centers)
        rest = (None if valid is None else valid[None], None if center_counts is None else center_counts[None])
        return tuple(t[0] for t in vic_cluster(*batch, *rest, **options))
    size, longest = features.shape[:2]
    if features.dtype == torch.float64 or longest > MAX_TOKENS or size == 0:
        return torch.ops.vitcop_reference.vic_cluster(
            features, positions, d_c, tau, num_centers, valid, center_counts, **options
        )
    return cluster(
        Problem(features, positions, None, valid, center_counts, size, longest, d_c, tau, num_centers), **options
    )


def halves(x: float) -> tuple[int, int]:
    """A double as two int32: a float argument would reach the kernel as float32."""
    low, high = struct.unpack("<ii", struct.pack("<d", x))
    return high, low


def tile_of(longest: int, dtype: torch.dtype, hip: bool) -> int:
    """Rows of a tile. Not from the batch: the bits of a sample must not depend on it. Larger ones would spill on AMD,
    and in float32."""
    return 32 if longest <= 384 or dtype == torch.float32 or hip else 64


def warps_of(tile: int) -> int:
    return {32: 4, 64: 8}[tile]


def block_of(width: int, dtype: torch.dtype) -> int:
    """Channels of one step of the Gram product: a divisor of the width."""
    return next(b for b in ((32, 16) if dtype == torch.float32 else (64, 32, 16)) if width % b == 0)


def floor_of(metric: str, released: bool) -> float:
    """Distinct tokens of smaller q need float64: it leaves float32's range, or drowns in the released code's 1e-8."""
    if released:
        return 2.0**-34 if metric == "cosine" else 2.0**-70
    return 2.0**-96


def constants_of(n: int, width: int, dtype: torch.dtype, hip: bool, **flags: Any) -> dict[str, Any]:
    """Compile-time arguments of vic_kernel but its phase; `flags` say what the call has and wants."""
    tile = tile_of(n, dtype, hip)
    precision = "ieee" if hip else "tf32x3"  # one pass of TF32 gives wrong partitions
    return dict(
        STORE=False,
        **flags,
        EPS=1e-8 if flags["RELEASED"] else 0.0,
        D=width,
        BM=tile,
        BK=block_of(width, dtype),
        BD=min(128, next_power_of_2(width)),
        PREC=precision if dtype == torch.float32 else "ieee",
        UP=UPCAST,
        SLABS=next_power_of_2(cdiv(width, SLAB.value)),
        NP=max(16, next_power_of_2(n)),
        JUMPS=max(1, (n - 1).bit_length()),
        FLOOR=floor_of("cosine" if flags["COSINE"] else "l2", flags["RELEASED"]),
        num_warps=warps_of(tile),
        num_stages=3,
    )


def limits_of(phase: Any, dtype: torch.dtype, stored: bool, hip: bool) -> dict[str, Any]:
    """PARENT with its own product is what ptxas keeps in registers only when left alone, float32 with more warps."""
    if hip or stored or getattr(phase, "value", phase) != k.PARENT.value:
        return {}
    return {"maxnreg": None, "num_warps": 8} if dtype == torch.float32 else {"maxnreg": None}


TOGETHER = {"launch_cooperative_grid": True}


def most_together(hip: bool) -> int:
    """Padded tokens of a sample in one launch: more would not be resident, or would spill."""
    return 4096 if hip else 1024


_resident: dict[tuple[Any, ...], int] = {}


def fits(grid: tuple[int, int], args: Args, constants: dict[str, Any]) -> bool:
    """Whether all programs of the one launch are resident at once, and in registers. The driver is asked once per
    specialization; should the answer ever be wrong, a cooperative launch is refused rather than left to hang."""
    if UPCAST or not args.x.is_cuda or constants["NP"] > most_together(is_hip()):
        return False
    device = args.x.device.index
    kinds = tuple((a.dtype, a.data_ptr() % 16) if isinstance(a, Tensor) else (a == 1, a % 16 == 0) for a in args)
    key = (device, kinds, *constants.values())
    if key not in _resident:
        with torch.cuda.device(device):
            compiled = k.vic_kernel.warmup(
                *args, grid=grid, PHASE=k.ALL, **constants, **plain_options(constants["num_warps"]), **TOGETHER
            )
            resident = resident_programs(compiled, constants["num_warps"], device)
            _resident[key] = 0 if compiled.n_spills else resident  # phase by phase is faster than through memory
    return grid[0] * grid[1] <= _resident[key]


def launch_together(grid: tuple[int, int], args: Args, constants: dict[str, Any]) -> None:
    launch(k.vic_kernel, grid, *args, PHASE=k.ALL, **constants, **TOGETHER)


def aligned_rows(x: Tensor) -> Tensor:
    """Rows of a multiple of 16 elements at 16-byte addresses: the tensor itself, or a copy padded with zeros."""
    step = 16 // x.element_size()
    rows_fit = all(s % step == 0 for s in x.stride()[:-1]) and x.data_ptr() % 16 == 0
    if x.shape[-1] > 0 and x.shape[-1] % 16 == 0 and x.stride(-1) == 1 and rows_fit:
        return x
    copy = x.new_zeros((*x.shape[:-1], max(16, cdiv(x.shape[-1], 16) * 16)))
    copy[..., : x.shape[-1]] = x
    return copy


def cluster(
    p: Problem,
    *,
    semantics: str = "paper",
    metric: str = "l2",
    dist_scale: float = 1.0,
    density: str = "gaussian",
    knn: int = 5,
    include_self: bool | None = None,
    assign: str = "parent",
    root_delta: str = "inf",
) -> tuple[Tensor, ...]:
    released = semantics == "released"
    own = released if include_self is None else include_self
    device = p.features.device
    x = aligned_rows(unit_rows(p.features) if metric == "cosine" else p.features)
    n, width = p.longest, x.shape[-1]
    total = x.shape[0] if p.cu_seqlens is not None else p.batch * n

    positions, axes = p.positions, 0 if p.positions is None else p.positions.shape[-1]
    limit = p.tau * p.tau * (1 + 1e-6)
    has_pos = positions is not None and axes > 0 and p.tau < INF
    if positions is None or not has_pos:
        positions, axes = x, 0
    shared = positions.dim() == 2
    scale2 = dist_scale * dist_scale
    inverse = min(scale2 / p.d_c / p.d_c, sys.float_info.max)  # infinity times 0 would be no number

    tile, slabs = tile_of(n, x.dtype, is_hip()), cdiv(width, SLAB.value)
    tiles = cdiv(n, tile) * (cdiv(n, tile) + 1) // 2
    lead = p.features.shape[:-1]
    labels = torch.empty(lead, dtype=torch.int64, device=device)
    parent = torch.empty_like(labels)
    rho = torch.empty(lead, dtype=torch.float32, device=device)
    delta = torch.empty_like(rho)
    centers = torch.empty((p.batch, p.num_centers), dtype=torch.int64, device=device)

    padded = next_power_of_2(slabs)  # SLABS of the kernels
    state = torch.zeros((p.batch, STATE.value), dtype=torch.int64, device=device)
    floats = torch.empty(p.batch * (n + width + padded), dtype=torch.float32, device=device)
    norms, anchors, gains = floats.split([p.batch * n, p.batch * width, p.batch * padded])
    doubles = torch.empty((p.batch, 2, n), dtype=torch.float64, device=device)  # log-density, delta^2
    ints = torch.empty((p.batch, 3, n), dtype=torch.int32, device=device)  # nearest, is centre, parent
    longs = torch.empty((p.batch, 2, n), dtype=torch.int64, device=device)  # density, best parent
    copy = torch.empty((p.batch, n, width), dtype=x.dtype, device=device)

    valid = x if p.valid is None else p.valid.view(torch.uint8)
    s_vb, s_vn = (0, 0) if p.valid is None else valid.stride()
    constants = constants_of(
        n,
        width,
        x.dtype,
        is_hip(),
        VARLEN=p.cu_seqlens is not None,
        HAS_VALID=p.valid is not None,
        HAS_COUNTS=p.counts is not None,
        HAS_POS=has_pos,
        P=axes,
        POS64=positions.dtype == torch.float64 or not 1e-30 < limit < 1e30,
        COSINE=metric == "cosine",
        SELF=own,
        RELEASED=released,
        KNN=density == "knn",
        ROOT_MAX=root_delta == "max",
    )
    args = Args(
        x,
        positions,
        valid,
        p.cu_seqlens if p.cu_seqlens is not None else state,
        p.counts if p.counts is not None else state,
        labels,
        centers,
        parent,
        rho,
        delta,
        copy,
        anchors,
        gains,
        norms,
        doubles,
        ints,
        longs,
        state,
        norms,
        n,
        total,
        p.num_centers,
        0 if x.dim() == 2 else x.stride(0),
        x.stride(-2),
        s_vb,
        s_vn,
        0 if shared else positions.stride(0),
        positions.stride(-2),
        positions.stride(-1),
        min(inverse, 3e38),
        *halves(scale2),
        *halves(inverse),
        *halves(limit),
    )

    def run(phase: int, programs: int) -> None:
        options = limits_of(phase, x.dtype, constants["STORE"], is_hip())
        launch(k.vic_kernel, (programs, p.batch), *args, PHASE=phase, **{**constants, **options})

    one_launch = density == "gaussian" and assign == "parent" and not released  # the others stop between phases
    if one_launch and fits((tiles, p.batch), args, constants):
        launch_together((tiles, p.batch), args, constants)
        return labels, centers, parent, rho, delta

    if p.batch * tiles * tile * tile * 4 <= STORED_BYTES:
        constants["STORE"] = True
        args = args._replace(scratch=torch.empty(p.batch * tiles * tile * tile, dtype=torch.float32, device=device))
    run(k.INIT, cdiv(n, 8))
    run(k.VERIFY, slabs)
    run(k.ANCHOR, cdiv(n, 8))
    run(k.TILE, tiles)
    if density == "knn":
        neighbour_densities(args, constants, min(knn, n))
    if density != "knn" or root_delta == "max":
        run(k.DENSITY, tiles)
    run(k.PARENT, tiles)
    if released:
        released_centers(args, constants, p.counts)
    else:
        run(k.CHOOSE, cdiv(n, 8))
    run(k.RESOLVE, 1)
    if assign == "nearest":
        nearest_centers(args, constants)
    return labels, centers, parent, rho, delta
