"""The fuzzer's first cases of every op; `tests/ops/test_isa.py` runs it once per instruction set.

The instruction set is chosen when the native module is loaded, so each needs a process of its own.
"""

import torch
from support import OPS, native_isa

from vitcop_kernels.testing.judge import judge
from vitcop_kernels.testing.table import case_of

SEEDS = 40

if __name__ == "__main__":
    torch.set_num_threads(2)
    for op in OPS:
        for seed in range(SEEDS):
            verdict = judge(case_of(op, seed), ["native"]).verdicts["native"]
            assert verdict.kind != "mismatch", f"python -m verification.fuzz --replay {op}:{seed}: {verdict.why}"
    print(native_isa(), len(OPS))
