"""Adding an op takes its folder and a row: everything that loops over the table picks it up."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

OP = """
from vitcop_kernels._library import register

from .reference import toy_double


def check(x):
    if x.dim() != 1:
        raise ValueError(f"toy_double: x: expected [N], got {list(x.shape)}")


register("toy_double(Tensor x) -> Tensor", check=check, reference=toy_double, fake=lambda x: x.new_empty(x.shape))
"""
REFERENCE = """
def toy_double(x):
    return x * 2
"""
ROW = """
import torch

from ..inputs import f
from ..op import Op, Shape, product
from ..permutation import outcome
from ..values import STRUCTURES, scores
from ..verdicts import double, numbers


def draw(d):
    dtype, structure, n = d.dtype(), d.pick(STRUCTURES[:3]), d.tokens()
    return dtype, structure, n, (d.laid_out(scores(d, (n,), dtype, structure)),), {}


class Truth:
    def __init__(self, case):
        self.want, self.dtype = 2 * double(case.args[0]), case.dtype

    def judge(self, got, implementation):
        return numbers("y", got, self.want, 0.0, self.dtype)


def permute(call, s, dtype):
    x = s.normal(s.n, dtype=dtype)
    return outcome(call(x[s.order]), call(x)[s.order], dtype)


OP = Op(
    dims={"tokens": 9},
    make=lambda c, r: ((r.normal(c["tokens"]),), {}),
    flops=product("tokens"),
    shapes=(Shape({"tokens": 5}),),
    samples=lambda dtype: iter([((torch.ones(3, dtype=dtype),), {})]),
    dynamic=lambda b, n: (torch.ops.vitcop.toy_double, (torch.ones(n),), ((0,),)),
    draw=draw,
    build=lambda b, dtype: dict(x=b.floats(b.below(9), dtype=dtype)),
    good=dict(x=f(4)),
    bad=((dict(x=f(2, 2)), ValueError, "x: expected [N], got [2, 2]"),),
    devices=(),
    truth=Truth,
    permute=permute,
    permuted="Doubles go with their tokens, bit for bit.",
)
"""
EVERYTHING = """
import sys

import vitcop_kernels.ops
import vitcop_kernels.testing.ops as rows

folder = sys.argv[1]
vitcop_kernels.ops.__path__.append(folder + "/ops")
rows.__path__.append(folder + "/rows")
import vitcop_kernels.ops.toy_double.op
import torch

from verification import fuzz
from vitcop.bench import bench, cases_for
from vitcop_kernels.bench import floor
from vitcop_kernels.testing import contract, judge, table
from vitcop_kernels.testing.permutation import Shuffle

assert "toy_double" in table.TABLE and ("toy_double", table.TABLE["toy_double"].shapes[0]) in table.real()
tally = fuzz.run(fuzz.chunks(["toy_double"], 20, 0), ["reference"])
assert tally.by()["exact"] == 20, tally.mismatches
case = table.build("toy_double", {"tokens": 7})
judge.verify("toy_double", case.args, case.kwargs, case.run())
try:
    judge.verify("toy_double", case.args, case.kwargs, case.run() + 1)
except AssertionError:
    pass
else:
    raise SystemExit("a wrong answer passed")
outcomes = {contract.check(table.call_from("toy_double", bytes([k] * 9))) for k in range(40)}
assert "answer" in outcomes, outcomes
assert table.TABLE["toy_double"].permute(torch.ops.vitcop.toy_double, Shuffle(6, 0), case.dtype) == "same bits"
floor.SIZES, floor.GEMMS = floor.SIZES[:2], ((64, 64, 64),)
todo = cases_for("toy_double", {"tokens": 5}, "float32", torch.device("cpu"))
(row,) = bench(todo, compiled=False, rounds=3, seconds=0.1)["rows"]
assert "refused" not in row and row["ways"]["vitcop"]["median_s"] > 0
sys.path.insert(0, sys.argv[2])
from benchmarks.test_ops import ways

assert ("toy_double", table.TABLE["toy_double"].shapes[0], "vitcop") in list(ways(quick=False))
print("picked up")
"""


def test_an_op_that_is_added_is_picked_up_everywhere(tmp_path: Path) -> None:
    for path, text in {
        "ops/toy_double/__init__.py": "",
        "ops/toy_double/op.py": OP,
        "ops/toy_double/reference.py": REFERENCE,
        "rows/toy_double.py": ROW,
        "everything.py": EVERYTHING,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    command = [sys.executable, str(tmp_path / "everything.py"), str(tmp_path), str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "python")))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "picked up" in done.stdout, done.stdout + done.stderr
