"""The configurations of the clustering kernels for compiling ahead of time, through the launchers' own constants.

A phase is compiled for what it depends on: positions matter to PARENT alone, the padded number of tokens (NP) to ALL
and RESOLVE alone. Half-precision dtypes differ in loads and products alone, so fp16 has TILE. "every option" is one
configuration with all options that add code: ragged, counts, 3 axes in float64, root_delta="max", include_self.
"""

from typing import Any

import torch

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import NAMES

from . import kernel as launcher
from . import phases as k
from . import rare
from .rare import Args

HALF, OTHER, FULL = torch.bfloat16, torch.float16, torch.float32
SMALL, LARGE, MOST = 384, 4608, launcher.MAX_TOKENS  # tokens: the last of the small tile, video, the most
PLAIN = dict(
    HAS_VALID=False,
    HAS_COUNTS=False,
    HAS_POS=True,
    P=2,
    POS64=False,
    COSINE=False,
    SELF=False,
    RELEASED=False,
    KNN=False,
    ROOT_MAX=False,
)
RELEASED = {"SELF": True, "RELEASED": True}
EVERY = {"HAS_COUNTS": True, "P": 3, "POS64": True, "SELF": True, "ROOT_MAX": True}
PHASES = "ALL INIT VERIFY ANCHOR TILE DENSITY PARENT DENSITY+ PARENT+ CHOOSE RESOLVE"  # +: of stored tiles

# What, dtype, width, tokens, flags, phases; ALL of LARGE is compiled for what fits one launch.
Case = tuple[str, torch.dtype, int, int, dict[str, Any], str]
CASES: dict[str, list[Case]] = {
    "vic_cluster": [
        ("paper", HALF, 1024, SMALL, {}, PHASES),
        ("paper", HALF, 1024, LARGE, {}, PHASES),
        ("paper", HALF, 1024, MOST, {}, "RESOLVE"),
        ("paper", OTHER, 1024, LARGE, {}, "TILE"),
        ("paper", FULL, 1024, SMALL, {}, "ALL TILE"),
        ("paper", FULL, 1024, LARGE, {}, "INIT VERIFY ANCHOR TILE DENSITY PARENT"),
        ("paper", HALF, 96, LARGE, {}, "TILE"),
        ("paper", HALF, 48, LARGE, {}, "TILE"),
        ("paper", FULL, 48, LARGE, {}, "TILE"),
        ("every option", HALF, 1024, LARGE, EVERY, "ALL INIT TILE PARENT+ CHOOSE"),
        ("released", HALF, 1024, SMALL, RELEASED, "DENSITY+ PARENT+"),
        ("released", HALF, 1024, LARGE, RELEASED, "TILE DENSITY PARENT DENSITY+ PARENT+ RESOLVE"),
        ("released cosine", FULL, 1024, LARGE, {**RELEASED, "COSINE": True}, "TILE DENSITY+ PARENT+"),
        ("cosine", FULL, 1024, LARGE, {"COSINE": True}, "DENSITY+ PARENT+ CHOOSE RESOLVE"),
        ("knn", HALF, 1024, LARGE, {"KNN": True, "ROOT_MAX": True}, "TILE DENSITY+ PARENT+"),
    ],
    "vic_cluster_varlen": [
        ("paper", HALF, 1024, LARGE, {}, PHASES),
        ("released", HALF, 1024, LARGE, RELEASED, "DENSITY+ PARENT+"),
    ],
}


def specs(op: str) -> list[AotSpec]:
    varlen = op == "vic_cluster_varlen"
    found: dict[str, AotSpec] = {}
    for what, dtype, width, n, flags, phases in CASES[op]:
        for hip in (False, True):
            valid = what == "every option" and not varlen
            given = {**PLAIN, "VARLEN": varlen, **flags, "HAS_VALID": valid}
            for phase in phases.split():
                size = launcher.most_together(hip) if phase == "ALL" and n > SMALL else n
                constants = launcher.constants_of(size, width, dtype, hip, **given) | {"UP": False}
                if phase not in ("ALL", "RESOLVE"):  # the others do not read these
                    constants |= {"NP": 512, "JUMPS": 9}
                _add(found, _phase(op, what, phase, dtype, constants, hip))
    for spec in _rare_specs(op):
        _add(found, spec)
    return list(found.values())


def _add(found: dict[str, AotSpec], spec: AotSpec) -> None:
    """Once, where a configuration is the same on both backends."""
    same = found.get(spec.name)
    if same is None:
        found[spec.name] = spec
    elif spec.backends != same.backends:
        assert (spec.constexprs, spec.options, spec.num_warps) == (same.constexprs, same.options, same.num_warps)
        same.claims.update(spec.claims)
        found[spec.name] = AotSpec(**{**same.__dict__, "backends": ("cuda", "hip")})


def _phase(op: str, what: str, phase: str, dtype: torch.dtype, constants: dict[str, Any], hip: bool) -> AotSpec:
    constants = dict(constants)
    stored, phase = phase.endswith("+") or phase == "TILE", phase.rstrip("+")
    tile, precision, padded = constants["BM"], constants["PREC"], constants["NP"]
    launched = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    limits = launcher.limits_of(getattr(k, phase).value, dtype, stored, False)  # AMD GPUs are compiled without maxnreg
    warps = limits.pop("num_warps", launched["num_warps"])
    launched["num_warps"] = launched["num_warps"] if hip else warps
    details = [what, NAMES[dtype], f"D={constants['D']}", f"tile={tile}"] + ["stored"] * stored
    details += [f"{padded} tokens"] * (phase in ("ALL", "RESOLVE")) + [precision] * (dtype == FULL)
    return AotSpec(
        f"{op}:{phase.lower()}[{','.join(details)}]",
        k.vic_kernel,
        _signature(k.vic_kernel, dtype, Args._fields),
        {**constants, "PHASE": getattr(k, phase).value, "STORE": stored},
        **launched,
        claims=_claims(dtype, tile, hip) if phase in ("ALL", "TILE") else {},
        divisible=_divisible(k.vic_kernel),
        options=launcher.TOGETHER if phase == "ALL" else limits,
        backends=("hip",) if hip else ("cuda",),
        optional=phase == "ALL",
    )


def _claims(dtype: torch.dtype, tile: int, hip: bool) -> dict[str, str]:
    if hip:
        return {"hip": "mfma"}
    if tile < 64:  # less than what wgmma and tcgen05 multiply
        return {"cuda:80": "mma"}
    return {"cuda:80": "mma", "cuda:90": "wgmma", "cuda:100": "tcgen05", "cuda:120": "mma"}


def _divisible(kernel: Any) -> tuple[str, ...]:
    return tuple(name for name in kernel.arg_names if name.startswith("p_") or name in ("s_batch", "s_row"))


def _signature(kernel: Any, dtype: torch.dtype, fields: tuple[str, ...]) -> dict[str, str]:
    """Types of arguments that come first, by their names in Args."""
    kind = NAMES[dtype]
    pointers = dict(
        x=kind,
        positions="fp32",
        valid="u8",
        cu_seqlens="i32",
        counts="i64",
        labels="i64",
        centers="i64",
        parent="i64",
        rho="fp32",
        delta="fp32",
        copy=kind,
        anchors="fp32",
        gains="fp32",
        norms="fp32",
        doubles="fp64",
        ints="i32",
        longs="i64",
        state="i64",
        scratch="fp32",
        d2="fp64",
        key="fp32",
    )
    types = [f"*{pointers[name]}" if name in pointers else "fp32" if name == "rate" else "i32" for name in fields]
    return dict(zip(kernel.arg_names, types, strict=False))


def _rare_specs(op: str) -> list[AotSpec]:
    found = []
    varlen = op == "vic_cluster_varlen"
    for dtype in (HALF, FULL) if not varlen else ():  # rows of any strides
        names = rare.unit_kernel.arg_names
        signature = {name: "i32" for name in names if name not in ("BR", "BD")}
        signature |= {"p_x": f"*{NAMES[dtype]}", "p_u": "*fp32"}
        constants = {"BR": 8, "BD": 128}
        name = f"{op}:unit[{NAMES[dtype]}]"
        found.append(AotSpec(name, rare.unit_kernel, signature, constants, divisible=("p_x", "p_u", "W")))

    pairs = (
        "x",
        "cu_seqlens",
        "copy",
        "gains",
        "norms",
        "state",
        "d2",
        "n",
        "total",
        "first",
        "rows",
        "s_batch",
        "s_row",
        "s2_hi",
        "s2_lo",
    )
    nearest = (
        "x",
        "cu_seqlens",
        "copy",
        "gains",
        "norms",
        "ints",
        "state",
        "centers",
        "labels",
        "n",
        "total",
        "num_centers",
        "s_batch",
        "s_row",
    )
    gamma = (
        "cu_seqlens",
        "norms",
        "doubles",
        "ints",
        "longs",
        "state",
        "rho",
        "delta",
        "key",
        "n",
        "total",
        "s2_hi",
        "s2_lo",
    )
    cases: list[tuple[str, torch.dtype, dict[str, Any]]] = [
        ("paper", HALF, {}),
        ("cosine", FULL, {"COSINE": True}),
        ("released", HALF, {**RELEASED, "ROOT_MAX": True}),
    ]
    for what, dtype, flags in cases if not varlen else cases[-1:]:
        for hip in (False, True):
            constants = launcher.constants_of(SMALL, 1024, dtype, hip, **{**PLAIN, "VARLEN": varlen, **flags})
            constants |= {"UP": False, "BM": 32, "BR": 128}
            for name, kernel, fields in (
                ("pairs", rare.pairs_kernel, pairs),
                ("nearest", rare.nearest_kernel, nearest),
                ("gamma", rare.gamma_kernel, gamma),
            ):
                if name == "gamma" and what != "released":
                    continue
                product = name != "gamma"
                wanted = [argument for argument in kernel.arg_names if argument in constants]
                details = [what, NAMES[dtype]] + [str(constants["PREC"])] * (product and dtype == FULL)
                found.append(
                    AotSpec(
                        f"{op}:{name}[{','.join(details)}]",
                        kernel,
                        _signature(kernel, dtype, fields),
                        {argument: constants[argument] for argument in wanted},
                        claims=_claims(dtype, 32, hip) if product else {},
                        divisible=_divisible(kernel),
                        backends=("hip",) if hip else ("cuda",),
                    )
                )
    return found


def aot_specs() -> list[AotSpec]:
    return specs("vic_cluster")
