"""Every op on one device: right values, the same bits again and again and from a graph, and no waiting for the host.

python -m verification.gpu.checks [--dry-run] [--real] [--only-launch] [--skip ITEM ...]

Prints `begin ITEM` and `ok ITEM`, or `wrong ITEM: why`; compute-sanitizer runs the small sizes with --only-launch.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vitcop_kernels.bench.device import CudaDevice, Device, DryRun
from vitcop_kernels.testing import table
from vitcop_kernels.testing.judge import verify
from vitcop_kernels.testing.op import Case, Shape
from vitcop_kernels.testing.verdicts import flat, same

# Several tiles of everything, ends that fit no tile.
ODD = {"batch": 2, "tokens": 70, "width": 96, "heads": 3, "head_dim": 48, "text": 20}


def items(dry_run: bool, real: bool) -> Iterator[tuple[str, str, Shape, bool | None]]:
    """(name, op, shape, whether vic_cluster is to go in one launch)."""
    small = [
        (op, Shape({name: size for name, size in ODD.items() if name in row.dims}, dtype))
        for op, row in table.TABLE.items()
        for dtype in ("float32", "bfloat16")
    ]
    for op, shape in table.real(small=True) if dry_run else table.real() if real else small:
        name = f"{op} {' '.join(f'{dim}={size}' for dim, size in shape.dims.items())} {shape.dtype}"
        if op.startswith("vic_cluster"):
            yield f"{name}, a launch a phase", op, shape, False
            yield f"{name}, one launch", op, shape, True
        else:
            yield name, op, shape, None


def check(device: Device, case: Case, repeats: int) -> None:
    for t in flat(case.args):
        poison(t)
    first = case.run()
    verify(case.op, case.args, case.kwargs, first)
    changed = torch.zeros((), dtype=torch.bool, device=device.device)
    for k in range(repeats):
        if k % 10 == 0:
            poison(flat(case.args)[0])
        for a, b in zip(flat(first), flat(case.run()), strict=True):
            changed |= (bits(a) != bits(b)).any()
    if bool(changed):  # read once, at the end
        raise AssertionError(f"other bits in {repeats} runs on the same inputs")
    with device.no_sync():
        case.run()
    check_graph(device, case)


def check_graph(device: Device, case: Case) -> None:
    """Captured, outputs poisoned, replayed: the eager bits; and again with other inputs in the same places."""
    case = Case(case.op, tree_map_only(Tensor, torch.clone, case.args), case.kwargs, case.dtype)
    replay, out = device.capture(case.run)
    for turn in range(2):
        if turn == 1:
            for t in flat(case.args):
                if t.is_floating_point() and t.dim() >= 2:
                    t.copy_(t.flip(-2) if t.shape[-2] > 1 else t.flip(-1))
        for t in flat(out):
            t.view(-1).view(torch.uint8).fill_(0x77) if t.is_contiguous() else t.fill_(7)
        replay()
        device.synchronize()
        if not same([t.clone() for t in flat(out)], case.run()):
            raise AssertionError(f"a replay gives other bits than a call, inputs {turn + 1}")


def bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def poison(like: Tensor) -> None:
    """Leave NaN in freed memory: what an op forgets to write shows."""
    torch.empty(max(like.numel(), 1), dtype=torch.float32, device=like.device).fill_(float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only-launch", action="store_true", help="compare nothing: under a sanitizer")
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--real", action="store_true", help="the shapes of the table")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--slice", default="0/1", help="k/n: every n-th item, from the k-th")
    options = parser.parse_args()
    device: Any = DryRun() if options.dry_run else CudaDevice()
    first, step = map(int, options.slice.split("/"))
    for name, op, shape, together in list(items(options.dry_run, options.real))[first::step]:
        if name in options.skip:
            continue
        print(f"begin {name}", flush=True)
        try:
            case = table.build(op, shape.dims, shape.dtype, device.device)
            with device.one_launch(bool(together)):
                if options.only_launch:
                    case.run()
                else:
                    check(device, case, options.repeats)
            device.synchronize()
        except Exception as error:
            if "CUDA error" in str(error):  # nothing works in this process any more
                raise
            print(f"wrong {name}: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
        else:
            print(f"ok {name}", flush=True)


if __name__ == "__main__":
    main()
