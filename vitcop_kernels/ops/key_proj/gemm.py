"""The key projection on tensor cores with the norm of its keys as epilogue: shared by key_proj and key_proj_norms.

Each program writes, per row, the sum of squares of its columns, scaled by a power of two so that it neither overflows
nor vanishes; a last small kernel adds the columns in float64. heads="mean" sums over heads before squaring, so there
the keys go to a float32 scratch, and key_norms finishes.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcop_kernels._aot import AotSpec
from vitcop_kernels._triton import NAMES, UPCAST, cdiv, is_hip, launch, narrow, next_power_of_2, widen
from vitcop_kernels.ops.key_norms.kernel import key_norms

# BLOCK_M, BLOCK_N, warps: from the largest tile down; half-precision BLOCK_K is 64, float32 half of that.
TILES = ((128, 256, 8), (128, 128, 8), (64, 128, 4), (64, 64, 4))
ENOUGH_PROGRAMS = 96  # a smaller tile is taken while there are fewer
GROUP_M = 8  # row tiles that share a panel of weights in L2
NORM_ROWS = 4


@triton.jit
def projection_kernel(
    p_x,
    p_weight,
    p_bias,
    p_keys,
    p_wide,
    p_square,
    p_scale,
    num_tokens,
    width,
    num_columns,
    stride_xb,
    stride_xn,
    stride_xc,
    stride_wn,
    stride_wc,
    stride_bias,
    HAS_BIAS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDE: tl.constexpr,
    SQUARES: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile of keys = x weight^T + bias: stored as keys, stored in float32, or squared and summed per row."""
    i_b = tl.program_id(1).to(tl.int64)
    tiles_m, tiles_n = tl.cdiv(num_tokens, BLOCK_M), tl.cdiv(num_columns, BLOCK_N)
    pid = tl.program_id(0)
    group = pid // (GROUP_M * tiles_n)
    size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    i_m = group * GROUP_M + pid % (GROUP_M * tiles_n) % size
    i_n = pid % (GROUP_M * tiles_n) // size

    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    p_a = p_x + i_b * stride_xb + tl.minimum(o_m, num_tokens - 1).to(tl.int64)[:, None] * stride_xn
    p_a += o_k.to(tl.int64)[None, :] * stride_xc
    p_b = p_weight + tl.minimum(o_n, num_columns - 1).to(tl.int64)[:, None] * stride_wn
    p_b += o_k.to(tl.int64)[None, :] * stride_wc
    b_acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, width, BLOCK_K):
        if EVEN_K:
            b_a, b_b = tl.load(p_a), tl.load(p_b)
        else:
            b_a = tl.load(p_a, mask=(k + o_k < width)[None, :], other=0.0)
            b_b = tl.load(p_b, mask=(k + o_k < width)[None, :], other=0.0)
        if UPCAST:
            b_a, b_b = widen(b_a), widen(b_b)
        b_acc = tl.dot(b_a, tl.trans(b_b), b_acc, input_precision=PRECISION)
        p_a += BLOCK_K * stride_xc
        p_b += BLOCK_K * stride_wc
    if HAS_BIAS:
        b_bias = tl.load(p_bias + o_n.to(tl.int64) * stride_bias, mask=o_n < num_columns, other=0.0)
        b_acc += widen(b_bias)[None, :]

    m_m, m_n = o_m < num_tokens, o_n < num_columns
    i_row = i_b * num_tokens + o_m
    p_tile = i_row[:, None] * num_columns + o_n[None, :]
    if KEYS:
        tl.store(p_keys + p_tile, narrow(b_acc, p_keys.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])
    if WIDE:
        tl.store(p_wide + p_tile, b_acc, mask=m_m[:, None] & m_n[None, :])
    if SQUARES:
        b_acc = tl.where(m_n[None, :], b_acc, 0.0)
        # The power of two at the largest key, kept where it and its inverse are normal numbers.
        b_exponent = (tl.max(tl.abs(b_acc), 1).to(tl.int32, bitcast=True) >> 23) & 0xFF
        b_exponent = tl.minimum(tl.maximum(b_exponent, 1), 253)
        b_up = (b_exponent << 23).to(tl.float32, bitcast=True)
        b_down = ((254 - b_exponent) << 23).to(tl.float32, bitcast=True)
        b_scaled = b_acc * b_down[:, None]
        tl.store(p_square + i_row * tiles_n + i_n, tl.sum(b_scaled * b_scaled, 1), mask=m_m)
        tl.store(p_scale + i_row * tiles_n + i_n, b_up, mask=m_m)


@triton.jit
def finish_kernel(p_square, p_scale, p_norms, num_rows, num_tiles, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    o_r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_t = tl.arange(0, BLOCK_T)
    m = (o_r < num_rows)[:, None] & (o_t < num_tiles)[None, :]
    o = o_r[:, None] * num_tiles + o_t[None, :]
    b_scale = tl.load(p_scale + o, mask=m, other=0.0).to(tl.float64)
    b_square = tl.load(p_square + o, mask=m, other=0.0).to(tl.float64)
    b_norm = tl.sqrt(tl.sum(b_square * b_scale * b_scale, 1))
    tl.store(p_norms + o_r, b_norm.to(tl.float32), mask=o_r < num_rows)


@triton.jit
def rms_norm_kernel(
    p_x, p_weight, p_y, num_tokens, width, eps, stride_xb, stride_xn, stride_xc, stride_w, BLOCK: tl.constexpr
):
    """x * rsqrt(mean(x^2) + eps) * weight, rounded once."""
    i_n, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    p_row = p_x + i_b * stride_xb + i_n * stride_xn
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for c in range(0, width, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        b_x = widen(tl.load(p_row + o_c.to(tl.int64) * stride_xc, mask=o_c < width, other=0.0)).to(tl.float64)
        b_sum += b_x * b_x
    rstd = 1.0 / tl.sqrt(tl.sum(b_sum, 0) / width + eps)
    for c in range(0, width, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        b_x = widen(tl.load(p_row + o_c.to(tl.int64) * stride_xc, mask=o_c < width, other=0.0)).to(tl.float64)
        b_w = widen(tl.load(p_weight + o_c.to(tl.int64) * stride_w, mask=o_c < width, other=0.0)).to(tl.float64)
        b_y = (b_x * rstd * b_w).to(tl.float32)
        p_out = p_y + (i_b * num_tokens + i_n) * width + o_c
        tl.store(p_out, narrow(b_y, p_y.dtype.element_ty), mask=o_c < width)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[B, N, C] -> [B, N, C] contiguous, in the dtype of x."""
    batch, num_tokens, width = x.shape
    y = torch.empty((batch, num_tokens, width), dtype=x.dtype, device=x.device)
    launch(
        rms_norm_kernel,
        (num_tokens, batch),
        x,
        weight,
        y,
        num_tokens,
        width,
        eps,
        *x.stride(),
        *weight.stride(),
        BLOCK=1024,
        num_warps=4,
    )
    return y


def project(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, heads: str, *, want_keys: bool
) -> tuple[Tensor | None, Tensor]:
    """Keys [B, N, H, d] (None unless wanted) and norms [B, N] of x [B, N, C]."""
    batch, num_tokens, width = x.shape
    columns = weight.shape[0]
    mean = heads == "mean"
    norms = torch.empty((batch, num_tokens), dtype=torch.float32, device=x.device)
    keys = torch.empty((batch, num_tokens, columns), dtype=x.dtype, device=x.device) if want_keys else norms
    wide = torch.empty((batch, num_tokens, columns), dtype=torch.float32, device=x.device) if mean else norms
    config = _config(num_tokens, columns, width, x.dtype, want_keys, *_device_facts(x.device))
    tiles_m, tiles_n = cdiv(num_tokens, config["BLOCK_M"]), cdiv(columns, config["BLOCK_N"])
    partial = torch.empty((2, batch, num_tokens, 0 if mean else tiles_n), dtype=torch.float32, device=x.device)
    launch(
        projection_kernel,
        (tiles_m * tiles_n, batch),
        x,
        weight,
        x if bias is None else bias,
        keys,
        wide,
        *partial,
        num_tokens,
        width,
        columns,
        *x.stride(),
        *weight.stride(),
        0 if bias is None else bias.stride(0),
        HAS_BIAS=bias is not None,
        KEYS=want_keys,
        WIDE=mean,
        SQUARES=not mean,
        UPCAST=UPCAST,
        **config,
    )
    split = (batch, num_tokens, num_heads, columns // num_heads)
    if mean:
        norms = key_norms(wide.view(split).transpose(1, 2), heads="mean")
    else:
        rows = batch * num_tokens
        launch(
            finish_kernel,
            (cdiv(rows, NORM_ROWS),),
            *partial,
            norms,
            rows,
            tiles_n,
            ROWS=NORM_ROWS,
            BLOCK_T=next_power_of_2(tiles_n),
            num_warps=1,
        )
    return keys.view(split) if want_keys else None, norms


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, bool]:
    """(shared memory of a program, whether this is an AMD GPU)."""
    if device.type != "cuda":
        return 0, False
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 65536), is_hip()


def _config(
    num_tokens: int, columns: int, width: int, dtype: torch.dtype, want_keys: bool, shared_memory: int, hip: bool
) -> dict[str, Any]:
    """Tile and pipeline, by the shape of one sample (never by the batch: a sample alone gives the same bits)."""
    size, block_k = dtype.itemsize, 128 // dtype.itemsize

    def stage(tile: tuple[int, int, int]) -> int:
        return (tile[0] + tile[1]) * block_k * size

    def fits(tile: tuple[int, int, int]) -> bool:
        if size == 4:
            return tile[0] * tile[1] <= 64 * 64  # registers of three passes of TF32
        # Storing keys from the widest tile spills registers.
        return tile[1] < 256 or (not hip and not want_keys and 3 * stage(tile) <= shared_memory)

    def programs(tile: tuple[int, int, int]) -> int:
        return cdiv(num_tokens, tile[0]) * cdiv(columns, tile[1])

    fitting = [tile for tile in TILES if fits(tile)]
    tile = next((tile for tile in fitting if programs(tile) >= ENOUGH_PROGRAMS), fitting[-1])
    block_m, block_n, num_warps = tile
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "GROUP_M": GROUP_M,
        "EVEN_K": width % block_k == 0,
        "PRECISION": "ieee" if hip or size == 2 else "tf32x3",
        "num_warps": num_warps,
        "num_stages": 2 if hip else max(2, min(4, (shared_memory - 2048) // stage(tile))),
    }


def projection_specs(op: str, *, want_keys: bool) -> list[AotSpec]:
    """Every tile and pipeline that dispatch can choose, by the shared memory of a program."""
    cuda = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376}
    found: dict[str, AotSpec] = {}
    for target, shared_memory in {**cuda, "hip": 65536}.items():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for num_tokens, columns in ((77, 4096), (288, 1024), (288, 4096), (864, 4096)):
                config = _config(num_tokens, columns, 4096, dtype, want_keys, shared_memory, target == "hip")
                if dtype == torch.float16 and (config["BLOCK_M"], config["BLOCK_N"]) != (128, 128):
                    continue  # fp16 is compiled as bf16 is: one tile shows it
                largest = num_tokens == 864 and dtype != torch.float16
                for mean in (False, True)[: 1 + largest]:  # with a bias; they change the epilogue alone
                    tile = f"{config['BLOCK_M']}x{config['BLOCK_N']}x{config['BLOCK_K']}"
                    details = [NAMES[dtype], tile, f"{config['num_stages']} stages"] + ["mean,bias"] * mean
                    name = f"{op}:projection[{','.join(details + ['hip'] * (target == 'hip'))}]"
                    backends = (*(found[name].backends if name in found else ()), target)
                    backends = tuple(dict.fromkeys(backends))
                    found[name] = _projection_spec(name, backends, dtype, config, mean, mean, want_keys)
    for dtype in (torch.bfloat16, torch.float32):  # widths that are no multiple of a tile's
        config = _config(864, 4096, 4088, dtype, want_keys, 101376, False)
        name = f"{op}:projection[{NAMES[dtype]},odd width]"
        found[name] = _projection_spec(name, ("cuda",), dtype, config, False, True, want_keys)
    return list(found.values())


def _projection_spec(
    name: str,
    backends: tuple[str, ...],
    dtype: torch.dtype,
    config: dict[str, Any],
    mean: bool,
    bias: bool,
    want_keys: bool,
) -> AotSpec:
    element = f"*{NAMES[dtype]}"
    pointers = {"p_x": element, "p_weight": element, "p_bias": element}
    pointers |= {"p_keys": element if want_keys else "*fp32"}
    pointers |= dict.fromkeys(("p_wide", "p_square", "p_scale"), "*fp32")
    sizes = dict.fromkeys(("num_tokens", "width", "num_columns", "stride_xb", "stride_xn", "stride_wn"), "i32")
    units = {"stride_xc": 1, "stride_wc": 1, "stride_bias": 1}
    flags = {"HAS_BIAS": bias, "KEYS": want_keys, "WIDE": mean, "SQUARES": not mean, "UPCAST": False}
    launch_options = ("num_warps", "num_stages")
    claims = {"cuda:80": "mma", "cuda:90": "wgmma", "cuda:100": "tcgen05", "cuda:120": "mma", "hip": "mfma"}
    return AotSpec(
        name,
        projection_kernel,
        {**pointers, **sizes},
        {**units, **flags, **{k: v for k, v in config.items() if k not in launch_options}},
        **{k: config[k] for k in launch_options},
        claims=claims,
        backends=backends,
        divisible=(
            *pointers,
            *(("width",) if config["EVEN_K"] else ()),
            "num_columns",
            "stride_xb",
            "stride_xn",
            "stride_wn",
        ),
    )


def finish_specs() -> list[AotSpec]:
    specs = [
        AotSpec(
            f"key_proj_norms:finish[{tiles} tiles]",
            finish_kernel,
            {**dict.fromkeys(("p_square", "p_scale", "p_norms"), "*fp32"), "num_rows": "i32", "num_tiles": "i32"},
            {"ROWS": NORM_ROWS, "BLOCK_T": tiles},
            num_warps=1,
        )
        for tiles in (1, 64)
    ]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        element = f"*{NAMES[dtype]}"
        sizes = dict.fromkeys(("num_tokens", "width", "stride_xb", "stride_xn"), "i32")
        specs.append(
            AotSpec(
                f"key_proj_norms:rms_norm[{NAMES[dtype]}]",
                rms_norm_kernel,
                {"p_x": element, "p_weight": element, "p_y": element, **sizes, "eps": "fp32"},
                {"stride_xc": 1, "stride_w": 1, "BLOCK": 1024},
                divisible=("p_x", "p_weight", "p_y", "width", "stride_xb", "stride_xn"),
            )
        )
    return specs
