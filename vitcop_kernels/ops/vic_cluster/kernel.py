"""Launches the clustering kernels: one cooperative launch where all its programs fit the device, else one a phase."""

import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._occupancy import resident_programs
from vitcop_kernels._triton import NAMES, UPCAST, cdiv, is_hip, launch, next_power_of_2, plain_options

from . import phases as k
from .device import SLAB, STATE
from .rare import Args, nearest_centers, neighbour_densities, released_centers, unit_rows

MAX_TOKENS = 16384  # of a sample: labels are resolved by one program
STORED_BYTES = 64 << 20  # scratch for distance tiles; beyond it they are recomputed
INF = float("inf")
PHASES = ("ALL", "INIT", "VERIFY", "ANCHOR", "TILE", "DENSITY", "PARENT", "CHOOSE", "RESOLVE")


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


def tile_of(longest: int) -> int:
    """Rows of a tile. From the number of tokens alone: the bits of a sample must not depend on the batch."""
    return 32 if longest <= 384 or is_hip() else 64  # larger ones would spill on AMD


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


def precision() -> str:
    return "ieee" if is_hip() else "tf32x3"  # one pass of TF32 gives wrong partitions


_resident: dict[tuple[Any, ...], int] = {}


def fits(grid: tuple[int, int], args: Args, constants: dict[str, Any]) -> bool:
    """Whether all programs of the one launch are resident at once. The driver is asked once per specialization; should
    the answer ever be wrong, a cooperative launch is refused rather than left to hang."""
    if UPCAST or not args.x.is_cuda:
        return False
    device = args.x.device.index
    kinds = tuple((a.dtype, a.data_ptr() % 16) if isinstance(a, Tensor) else (a == 1, a % 16 == 0) for a in args)
    key = (device, kinds, *constants.values())
    if key not in _resident:
        with torch.cuda.device(device):
            compiled = k.vic_kernel.warmup(
                *args, grid=grid, PHASE=k.ALL, **constants, **plain_options(), **together(is_hip())
            )
            _resident[key] = resident_programs(compiled, constants["num_warps"], device)
    return grid[0] * grid[1] <= _resident[key]


def together(hip: bool) -> dict[str, Any]:
    """Options of the one launch. With the limit named, ptxas takes the registers it needs; left alone it spills."""
    return {"launch_cooperative_grid": True} if hip else {"launch_cooperative_grid": True, "maxnreg": 255}


def launch_together(grid: tuple[int, int], args: Args, constants: dict[str, Any]) -> None:
    launch(k.vic_kernel, grid, *args, PHASE=k.ALL, **constants, **together(is_hip()))


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
    inverse = scale2 / (p.d_c * p.d_c)

    tile, slabs = tile_of(n), cdiv(width, SLAB.value)
    tiles = cdiv(n, tile) * (cdiv(n, tile) + 1) // 2
    lead = p.features.shape[:-1]
    labels = torch.empty(lead, dtype=torch.int64, device=device)
    parent = torch.empty_like(labels)
    rho = torch.empty(lead, dtype=torch.float32, device=device)
    delta = torch.empty_like(rho)
    centers = torch.empty((p.batch, p.num_centers), dtype=torch.int64, device=device)

    padded = next_power_of_2(slabs)
    state = torch.zeros((p.batch, STATE.value), dtype=torch.int64, device=device)
    floats = torch.empty(p.batch * (n + width + padded), dtype=torch.float32, device=device)
    norms, anchors, gains = floats.split([p.batch * n, p.batch * width, p.batch * padded])
    doubles = torch.empty((p.batch, 2, n), dtype=torch.float64, device=device)  # log-density, delta^2
    ints = torch.empty((p.batch, 3, n), dtype=torch.int32, device=device)  # nearest, is centre, parent
    longs = torch.empty((p.batch, 2, n), dtype=torch.int64, device=device)  # density, best parent
    copy = torch.empty((p.batch, n, width), dtype=x.dtype, device=device)

    valid = x if p.valid is None else p.valid.view(torch.uint8)
    s_vb, s_vn = (0, 0) if p.valid is None else valid.stride()
    constants = dict(
        STORE=False,
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
        EPS=1e-8 if released else 0.0,
        D=width,
        BM=tile,
        BK=block_of(width, x.dtype),
        BD=min(128, next_power_of_2(width)),
        PREC=precision() if x.dtype == torch.float32 else "ieee",
        UP=UPCAST,
        SLABS=padded,
        NP=max(16, next_power_of_2(n)),
        JUMPS=max(1, (n - 1).bit_length()),
        FLOOR=floor_of(metric, released),
        num_warps=warps_of(tile),
        num_stages=3,
    )
    args = Args(
        x, positions, valid, p.cu_seqlens if p.cu_seqlens is not None else state,
        p.counts if p.counts is not None else state, labels, centers, parent, rho, delta,
        copy, anchors, gains, norms, doubles, ints, longs, state, norms,
        n, total, p.num_centers, 0 if x.dim() == 2 else x.stride(0), x.stride(-2), s_vb, s_vn,
        0 if shared else positions.stride(0), positions.stride(-2), positions.stride(-1),
        min(inverse, 3e38), *halves(scale2), *halves(inverse), *halves(limit),
    )  # fmt: skip

    def run(phase: int, programs: int) -> None:
        launch(k.vic_kernel, (programs, p.batch), *args, PHASE=phase, **constants)

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


def aot_specs(varlen: bool = False) -> list[AotSpec]:
    """One launch and phase by phase, at real widths; the phases that only the rare options have are in rare.py."""
    specs = []
    op = "vic_cluster_varlen" if varlen else "vic_cluster"
    scalars = {name: "i32" for name in Args._fields[Args._fields.index("n") :]} | {"rate": "fp32"}
    on_both, on_cuda, on_hip = ("cuda", "hip"), ("cuda",), ("hip",)
    for dtype, width, tile, released, backends in [
        (torch.bfloat16, 1024, 32, False, on_both),
        (torch.bfloat16, 1024, 64, False, on_cuda),
        (torch.bfloat16, 1024, 64, True, on_cuda),
        (torch.float16, 1024, 32, False, on_both),
        (torch.float16, 48, 64, False, on_cuda),
        (torch.float32, 1024, 32, False, on_cuda),
        (torch.float32, 1024, 64, False, on_cuda),
        (torch.float32, 1024, 32, True, on_cuda),
        (torch.float32, 1024, 32, False, on_hip),
    ]:
        kind = NAMES[dtype]
        pointers = dict(
            x=kind, positions="fp32", valid="u8", cu_seqlens="i32", counts="i64", labels="i64", centers="i64",
            parent="i64", rho="fp32", delta="fp32", copy=kind, anchors="fp32", gains="fp32", norms="fp32",
            doubles="fp64", ints="i32", longs="i64", state="i64", scratch="fp32",
        )  # fmt: skip
        types = [*(f"*{pointers[name]}" for name in Args._fields if name in pointers), *scalars.values()]
        names = k.vic_kernel.arg_names[: len(types)]
        longest = {32: 384, 64: 4608}[tile]
        slabs = next_power_of_2(cdiv(width, SLAB.value))
        prec = "tf32x3" if dtype == torch.float32 and backends == on_cuda else "ieee"
        shared = dict(
            VARLEN=varlen, HAS_VALID=False, HAS_COUNTS=False, HAS_POS=True, P=2, POS64=False, COSINE=False,
            SELF=released, RELEASED=released, KNN=False, ROOT_MAX=False, EPS=1e-8 if released else 0.0,
            D=width, BM=tile,
            BK=block_of(width, dtype), BD=min(128, next_power_of_2(width)),
            PREC=prec, UP=False, SLABS=slabs, FLOOR=floor_of("l2", released),
        )  # fmt: skip
        divisible = (*(name for name in names if name.startswith("p_")), "s_batch", "s_row")
        signature = dict(zip(names, types, strict=True))
        semantics = "released" if released else "paper"
        for phase in PHASES:
            if released and phase in ("ALL", "CHOOSE"):
                continue
            stored = phase in ("DENSITY", "PARENT")
            n = 1024 if phase == "ALL" and tile == 64 else longest
            size = dict(NP=next_power_of_2(n), JUMPS=(n - 1).bit_length())
            product = phase in ("ALL", "TILE")
            for store in (True, False) if stored else (phase == "TILE",):
                claims = (
                    {"cuda:80": "mma", "cuda:90": "wgmma" if tile == 64 else "mma", "hip": "mfma"} if product else {}
                )
                specs.append(
                    AotSpec(
                        f"{op} {phase.lower()} {kind} D={width} tile={tile} {semantics}{' stored' * store}"
                        + " hip" * (backends == on_hip),
                        k.vic_kernel,
                        signature,
                        {**shared, **size, "PHASE": getattr(k, phase).value, "STORE": store},
                        num_warps=warps_of(tile),
                        num_stages=3,
                        claims=claims,
                        divisible=divisible,
                        backends=backends,
                        options=together(False) if phase == "ALL" else {},
                    )
                )
    return specs
