"""The emulator on hand-made Triton kernels with known answers, and each checker on a planted fault.

python -m pytest -p verification.ptx.plugin verification/ptx/tests
"""

import math
import re

import pytest
import torch
import triton
import triton.language as tl

from verification.ptx import driver

WGMMA = driver.capability() == 90


@pytest.fixture(autouse=True, params=[0, 1, 2], ids=lambda seed: f"seed {seed}")
def seeded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(driver, "config", driver.Config(seed=request.param))


# ------------------------------------------------------------------------------------------------------------- answers
@triton.jit
def reduce_kernel(x, s, m, am, n, N: tl.constexpr):
    o = tl.arange(0, N)
    v = tl.load(x + o, mask=o < n, other=float("-inf"))
    tl.store(s, tl.sum(tl.where(o < n, v, 0.0), 0))
    top, at = tl.max(v, 0, return_indices=True)
    tl.store(m, top)
    tl.store(am, at)


@pytest.mark.parametrize("warps", [1, 4, 8])
@pytest.mark.parametrize("n", [1, 17, 200, 1024])
def test_reductions(warps, n):
    x = torch.randint(-50, 50, (n,)).float()
    s, m, am = torch.empty(1), torch.empty(1), torch.empty(1, dtype=torch.int32)
    reduce_kernel[(1,)](x, s, m, am, n, N=1024, num_warps=warps)
    assert s.item() == x.sum() and m.item() == x.max() and am.item() == int((x == x.max()).nonzero()[0])


@triton.jit
def scan_kernel(x, y, z, N: tl.constexpr):
    o = tl.arange(0, N)
    v = tl.load(x + o)
    tl.store(y + o, tl.cumsum(v, 0))
    tl.store(z + o, tl.cumprod(v % 3 + 1, 0))


@pytest.mark.parametrize("warps", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_scans(warps, dtype):
    x = torch.randint(-9, 9, (512,), dtype=dtype)
    y, z = torch.empty_like(x), torch.empty_like(x)
    scan_kernel[(1,)](x, y, z, N=512, num_warps=warps)
    assert torch.equal(y, x.cumsum(0).to(dtype))
    c = torch.where(x >= 0, x % 3, -((-x) % 3)) + 1
    assert torch.equal(z, c.cumprod(0, dtype=dtype))


@triton.jit
def histogram_kernel(x, h, N: tl.constexpr):
    tl.store(h + tl.arange(0, 256), tl.histogram(tl.load(x + tl.arange(0, N)), 256))


@pytest.mark.parametrize("warps", [1, 4, 8])
def test_histogram(warps):
    x = torch.randint(0, 256, (2048,), dtype=torch.int32)
    h = torch.empty(256, dtype=torch.int32)
    histogram_kernel[(1,)](x, h, N=2048, num_warps=warps)
    assert torch.equal(h.long(), torch.bincount(x, minlength=256))


@triton.jit
def sort_kernel(x, y, R: tl.constexpr, N: tl.constexpr):
    o = tl.arange(0, R)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(y + o, tl.sort(tl.load(x + o), 1))


@pytest.mark.parametrize("warps", [1, 4, 8])
def test_sort(warps):
    x = torch.randn(8, 128)
    y = torch.empty_like(x)
    sort_kernel[(1,)](x, y, R=8, N=128, num_warps=warps)
    assert torch.equal(y, x.sort(1).values)


@triton.jit
def dot_kernel(a, b, c, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, TRANS: tl.constexpr, PREC: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    acc = tl.zeros((M, N), tl.float32)
    for i in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + (i + k)[None, :])
        if TRANS:
            y = tl.trans(tl.load(b + n[:, None] * K + (i + k)[None, :]))
        else:
            y = tl.load(b + (i + k)[:, None] * N + n[None, :])
        acc = tl.dot(x, y, acc, input_precision=PREC)
    tl.store(c + m[:, None] * N + n[None, :], acc)


@pytest.mark.parametrize("mma", [0, 1])
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "shape",
    [
        (16, 16, 16, 32, 1),
        (32, 32, 32, 128, 4),
        (64, 64, 64, 256, 4),
        (64, 128, 32, 128, 8),
        (128, 256, 32, 192, 8),
        (128, 64, 16, 64, 4),
    ],
)
def test_dot(shape, dtype, trans, mma):
    m, n, bk, k, warps = shape
    a = torch.randint(-8, 8, (m, k)).to(dtype)  # products and sums are exact
    b = torch.randint(-8, 8, (n, k) if trans else (k, n)).to(dtype)
    c = torch.empty(m, n)
    driver.config.mma_mode = mma
    dot_kernel[(1,)](
        a, b, c, k, M=m, N=n, BK=bk, TRANS=trans, PREC="tf32", num_warps=warps, num_stages=2 if n == 256 else 3
    )
    assert torch.equal(c, a.float() @ (b.float().T if trans else b.float()))


@pytest.mark.parametrize("trans", [False, True])
def test_dot_tf32x3_is_close_to_float32(trans):
    a, b = torch.randn(64, 128), torch.randn(64, 128)
    c = torch.empty(64, 64)
    dot_kernel[(1,)](
        a, b if trans else b.T.contiguous(), c, 128, M=64, N=64, BK=32, TRANS=trans, PREC="tf32x3", num_warps=4
    )
    torch.testing.assert_close(c, a @ b.T, rtol=1e-5, atol=2e-5)
    dot_kernel[(1,)](
        a, b if trans else b.T.contiguous(), c, 128, M=64, N=64, BK=32, TRANS=trans, PREC="tf32", num_warps=4
    )
    assert 1e-4 < (c - a @ b.T).abs().max() < 0.1


@triton.jit
def atomic_kernel(x, n, total, top, low, old, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + o, mask=o < n, other=0)
    tl.atomic_add(total + v % 7, 1, mask=o < n)
    tl.atomic_max(top, tl.max(v, 0))
    tl.atomic_min(low, tl.min(tl.where(o < n, v, 1 << 30), 0))
    was = tl.atomic_add(old, 1)
    tl.store(old + 1 + was, tl.program_id(0))


def test_atomics():
    x = torch.randint(0, 1000, (777,), dtype=torch.int32)
    total, top, low = (
        torch.zeros(7, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
        torch.full((1,), 1 << 30, dtype=torch.int32),
    )
    old = torch.zeros(9, dtype=torch.int32)
    atomic_kernel[(7,)](x, 777, total, top, low, old, B=128)
    assert (
        torch.equal(total.long(), torch.bincount(x % 7, minlength=7))
        and top.item() == x.max()
        and low.item() == x.min()
    )
    assert old[0] == 7 and sorted(old[1:8].tolist()) == list(range(7))


@triton.jit
def math_kernel(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    v = tl.load(x + o)
    d = v.to(tl.float64)
    tl.store(y + o, tl.exp(v).to(tl.float64))
    tl.store(y + N + o, tl.sqrt(tl.abs(v)).to(tl.float64))
    tl.store(y + 2 * N + o, tl.exp(d))
    tl.store(y + 3 * N + o, tl.log(tl.abs(d) + 1e-3))
    tl.store(y + 4 * N + o, tl.sqrt(tl.abs(d)))
    tl.store(y + 5 * N + o, d / (tl.abs(d) + 0.1))
    tl.store(y + 6 * N + o, tl.div_rn(v, tl.abs(v) + 0.1).to(tl.float64))
    tl.store(y + 7 * N + o, tl.floor(v).to(tl.float64))
    tl.store(y + 8 * N + o, v.to(tl.int32).to(tl.float64))
    tl.store(y + 9 * N + o, v.to(tl.bfloat16).to(tl.float64))
    tl.store(y + 10 * N + o, v.to(tl.float16).to(tl.float64))


def test_math():
    x = torch.cat([torch.randn(250) * 5, torch.tensor([0.0, -0.0, 1e-40, 3.5, 2.5, -7.0])])
    y = torch.empty(11, 256, dtype=torch.float64)
    math_kernel[(1,)](x, y, N=256)
    d = x.double()

    def close(a: torch.Tensor, b: torch.Tensor, tol: float) -> None:
        torch.testing.assert_close(a, b, rtol=tol, atol=1e-300)

    close(y[0], x.exp().double(), 2e-6)
    close(y[1], x.abs().sqrt().double().where(x.abs() > 1e-38, 0), 1e-6)
    close(y[2], d.exp(), 4e-16)
    close(y[3], (d.abs() + 1e-3).log(), 4e-15)
    close(y[4], torch.tensor([math.sqrt(v) for v in d.abs().tolist()], dtype=torch.float64), 0)
    close(y[5], d / (d.abs() + 0.1), 0)
    close(y[6], (x / (x.abs() + 0.1)).double(), 0)
    close(y[7], x.floor().double(), 0)
    close(y[8], x.int().double(), 0)
    close(y[9], x.bfloat16().double(), 0)
    close(y[10], x.half().double(), 0)


@triton.jit
def gather_kernel(x, i, y, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(y + o, tl.gather(tl.load(x + o), tl.load(i + o), 0))


@pytest.mark.parametrize("warps", [1, 4])
def test_gather(warps):
    x, i, y = torch.randn(256), torch.randint(0, 256, (256,), dtype=torch.int32), torch.empty(256)
    gather_kernel[(1,)](x, i, y, N=256, num_warps=warps)
    assert torch.equal(y, x[i.long()])


@triton.jit
def integer_kernel(a, b, y, N: tl.constexpr):
    o = tl.arange(0, N)
    x, z = tl.load(a + o), tl.load(b + o)
    tl.store(y + o, x // z)
    tl.store(y + N + o, x % z)
    tl.store(y + 2 * N + o, (x * z) >> 3)
    tl.store(y + 3 * N + o, (x << 5) ^ z)
    tl.store(y + 4 * N + o, tl.umulhi(x, z))


def test_integers():
    a, b = torch.randint(-(2**31), 2**31, (2, 256)).int()
    b[b == 0] = 1
    y = torch.empty(5, 256, dtype=torch.int32)
    integer_kernel[(1,)](a, b, y, N=256)
    A, B = a.long(), b.long()

    def wrap(t: torch.Tensor) -> torch.Tensor:
        return ((t + 2**31) % 2**32 - 2**31).int()

    assert torch.equal(y[0], wrap(torch.div(A, B, rounding_mode="trunc"))) and torch.equal(y[1], torch.fmod(A, B).int())
    assert torch.equal(y[2], wrap(A * B) >> 3) and torch.equal(y[3], wrap(A << 5) ^ b)
    unsigned = torch.tensor([(x % 2**32) * (z % 2**32) >> 32 for x, z in zip(A.tolist(), B.tolist(), strict=True)])
    assert torch.equal(y[4], wrap(unsigned))


# -------------------------------------------------------------------------------------------------------------- faults
def fails_with(what, kernel, grid, *args, **options):
    with pytest.raises(driver.EmulatorError, match=what):
        kernel[grid](*args, **options)


@triton.jit
def copy_kernel(x, y, n, N: tl.constexpr, MASK: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + o, tl.load(x + o, mask=o < n if MASK else None), mask=o < n)


def test_out_of_bounds_is_noticed():
    x, y = torch.randn(100), torch.empty(100)
    copy_kernel[(1,)](x, y, 100, N=128, MASK=True)
    assert torch.equal(x, y)
    fails_with("out of bounds", copy_kernel, (1,), x, y, 100, N=128, MASK=False)
    fails_with("out of bounds", copy_kernel, (2,), x, y, 200, N=128, MASK=True)


def test_leaving_the_view_is_noticed():
    x = torch.randn(256)
    fails_with("outside the argument", copy_kernel, (1,), x[:100], torch.empty(128), 128, N=128, MASK=False)


def test_uninitialised_memory_is_noticed():
    x = torch.empty(128)
    fails_with("uninitialised global read", copy_kernel, (1,), x, torch.empty(128), 128, N=128, MASK=True)
    x[:] = 1.0
    copy_kernel[(1,)](x, torch.empty(128), 128, N=128, MASK=True)
    z = torch.empty(128)
    copy_kernel[(1,)](x, z, 100, N=128, MASK=True)
    fails_with("uninitialised global read", copy_kernel, (1,), z, torch.empty(128), 128, N=128, MASK=True)
    copy_kernel[(1,)](z, torch.empty(128), 100, N=128, MASK=True)


@triton.jit
def exchange_kernel(x, y, N: tl.constexpr, BARRIER: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(x + o, o)
    if BARRIER:
        tl.debug_barrier()
    tl.store(y + o, tl.load(x + (N - 1 - o)))


def test_a_missing_barrier_within_a_program_is_noticed():
    x, y = torch.zeros(128, dtype=torch.int32), torch.empty(128, dtype=torch.int32)
    exchange_kernel[(1,)](x, y, N=128, BARRIER=True, num_warps=4)
    assert torch.equal(y, torch.arange(128, dtype=torch.int32).flip(0))
    fails_with("global race", exchange_kernel, (1,), x, y, N=128, BARRIER=False, num_warps=4)


@triton.jit
def race_kernel(x, ATOMIC: tl.constexpr):
    if ATOMIC:
        tl.atomic_add(x, 1)
    else:
        tl.store(x, tl.load(x) + 1)


def test_a_race_between_programs_is_noticed():
    x = torch.zeros(1, dtype=torch.int32)
    race_kernel[(5,)](x, ATOMIC=True)
    assert x.item() == 5
    fails_with("global race", race_kernel, (5,), x, ATOMIC=False)


@triton.jit
def grid_kernel(
    x, y, flag, N: tl.constexpr, SEM: tl.constexpr, WAIT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr
):
    i, n = tl.program_id(0), tl.num_programs(0)
    o = tl.arange(0, N)
    tl.store(x + i * N + o, i * N + o)
    if BEFORE:
        tl.debug_barrier()
    tl.atomic_add(flag, 1, sem=SEM)
    seen = tl.atomic_add(flag, 0, sem=WAIT)
    while seen < n:
        seen = tl.atomic_add(flag, 0, sem=WAIT)
    if AFTER:
        tl.debug_barrier()
    j = n - 1 - i
    tl.store(y + i * N + o, tl.load(x + j * N + o))


def test_a_barrier_of_the_grid():
    def call(**options):
        x, y, flag = (
            torch.empty(6 * 128, dtype=torch.int32),
            torch.empty(6 * 128, dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
        )
        grid_kernel[(6,)](x, y, flag, N=128, launch_cooperative_grid=True, num_warps=4, **options)
        assert torch.equal(y.view(6, 128), torch.arange(768, dtype=torch.int32).view(6, 128).flip(0))

    right = dict(SEM="release", WAIT="acquire", BEFORE=True, AFTER=True)
    call(**right)
    call(**{**right, "SEM": "acq_rel", "WAIT": "acq_rel"})
    for wrong in (dict(SEM="relaxed"), dict(WAIT="relaxed")):
        with pytest.raises(driver.EmulatorError, match="global race"):
            call(**{**right, **wrong})
    # Triton puts a barrier before a release itself: without both, the other threads' stores are not released.
    args = (torch.empty(768, dtype=torch.int32), torch.empty(768, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    options = dict(
        N=128, SEM="release", WAIT="acquire", BEFORE=False, AFTER=True, launch_cooperative_grid=True, num_warps=4
    )
    with pytest.raises(driver.EmulatorError, match="global race"):
        planted(grid_kernel, (6,), args, options, without(r"bar\.sync\s+0;", count=1))


def test_programs_that_never_start_are_a_deadlock():
    x, y, flag = (
        torch.empty(768, dtype=torch.int32),
        torch.empty(768, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
    )
    driver.config.skip_ctas, driver.config.max_instructions = 1, 300_000
    fails_with(
        "instruction limit",
        grid_kernel,
        (6,),
        x,
        y,
        flag,
        N=128,
        SEM="release",
        WAIT="acquire",
        BEFORE=True,
        AFTER=True,
        launch_cooperative_grid=True,
    )


# Faults that Triton does not write are planted in its PTX.
def planted(kernel, grid, args, options, edit):
    compiled = kernel.warmup(*args, grid=grid, **options)
    ptx = compiled.asm["ptx"]
    changed = edit(ptx)
    assert changed != ptx
    loaded = driver.Module(changed.encode())
    compiled._init_handles()
    kept, driver._numbered[compiled.function] = driver._numbered[compiled.function], loaded
    try:
        kernel[grid](*args, **options)
    finally:
        driver._numbered[compiled.function] = kept


def without(pattern, count=0, flags=0):
    return lambda ptx: re.sub(pattern, "", ptx, count=count, flags=flags)


def test_a_missing_barrier_over_shared_memory_is_noticed():
    x = torch.randint(-50, 50, (1024,)).float()
    args = (x, torch.empty(1), torch.empty(1), torch.empty(1, dtype=torch.int32), 1024)
    with pytest.raises(driver.EmulatorError, match=r"shared race|uninitialised shared read"):
        planted(reduce_kernel, (1,), args, dict(N=1024, num_warps=4), without(r"bar\.sync\s+0;"))


def pipelined():
    a, b = torch.randint(-8, 8, (64, 256)).bfloat16(), torch.randint(-8, 8, (64, 256)).bfloat16()
    return (a, b, torch.empty(64, 64), 256), dict(M=64, N=64, BK=64, TRANS=True, PREC="tf32", num_warps=4, num_stages=3)


def test_a_missing_wait_for_copies_is_noticed():
    args, options = pipelined()
    with pytest.raises(driver.EmulatorError, match=r"cp.async not waited for|uninitialised shared read"):
        planted(dot_kernel, (1,), args, options, without(r"cp\.async\.wait_group\s+\d+;"))
    with pytest.raises(driver.EmulatorError, match=r"cp.async not waited for|uninitialised shared read"):
        planted(dot_kernel, (1,), args, options, lambda ptx: re.sub(r"(async\.wait_group\s+)\d", r"\g<1>9", ptx))


@pytest.mark.skipif(not WGMMA, reason="sm_90 alone has wgmma")
def test_a_missing_wait_for_wgmma_is_noticed():
    args, options = pipelined()
    try:
        planted(dot_kernel, (1,), args, options, without(r"wgmma\.wait_group\.sync\.aligned\s+\d+;"))
    except driver.EmulatorError as error:
        assert "wgmma" in str(error)
    else:
        a, b, c, _ = args
        pytest.fail(f"nothing noticed; right answer: {torch.equal(c, a.float() @ b.float().T)}")
