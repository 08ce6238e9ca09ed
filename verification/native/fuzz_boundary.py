"""libFuzzer on the op boundary, inside the Python process: `python fuzz_boundary.py <libFuzzer arguments>`.

Runs under a build of vitcop_kernels._C with coverage counters, AddressSanitizer and UBSan, with libFuzzer preloaded;
`python -m verification.boundary` makes and starts all that.
"""

import ctypes
import json
import os
import sys
import traceback
from collections import Counter

import torch

import vitcop_kernels
from vitcop_kernels.testing.contract import check
from vitcop_kernels.testing.table import TABLE, call_from

TARGET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_uint8), ctypes.c_size_t)
AT_EXIT = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
REFERENCE_EVERY = 16  # executions; the references are plain PyTorch and slow
counts: Counter[str] = Counter()


def one_input(data: ctypes._Pointer, size: int) -> int:
    """0 whatever comes; a violation aborts, which libFuzzer reports and keeps like any crash."""
    try:
        first, *rest = ctypes.string_at(data, size) or b"\0"
        call = call_from(tuple(TABLE)[first % len(TABLE)], bytes(rest))
        counts[check(call, sum(counts.values()) % REFERENCE_EVERY == 0)] += 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os.abort()
    return 0


def report(_: int | None) -> None:
    print("outcomes:", json.dumps(counts), file=sys.stderr, flush=True)


def main() -> None:
    assert vitcop_kernels.native_error is None, vitcop_kernels.native_error
    torch.set_num_threads(1)
    words = [word.encode() for word in sys.argv]
    argc, argv = ctypes.c_int(len(words)), (ctypes.c_char_p * (len(words) + 1))(*words, None)
    pointer = ctypes.pointer(ctypes.cast(argv, ctypes.POINTER(ctypes.c_char_p)))
    target, at_exit = TARGET(one_input), AT_EXIT(report)
    process = ctypes.CDLL(None)
    process.__cxa_atexit(at_exit, None, None)  # libFuzzer ends the process when it is done
    process.LLVMFuzzerRunDriver(ctypes.byref(argc), ctypes.byref(pointer.contents), target)


if __name__ == "__main__":
    main()
