"""A few configurations compiled now: `python -m verification.aot.live` prints what it found as JSON, for the test."""

import json
import sys
import tempfile
from dataclasses import replace
from typing import Any

import triton

from . import results, table
from .compiling import TARGETS, compile_spec, failures, ptx_of, targets_of
from .specs import collect, digest

ARCHITECTURES = ("sm_90", "gfx942")
REPRESENTATIVES = (  # of every op with kernels
    "attention_saliency:saliency[bf16,recomputed]",
    "compact_sequence[mean,bf16,4]",
    "expand_plan[has_perm=True,has_valid=False,345,77]",
    "key_norms[l2,bf16,32x128]",
    "key_proj:projection[bf16,128x128x64,",
    "key_proj_norms:rms_norm[bf16]",
    "plan_tokens:count[fp32,i64,totals]",
    "plan_tokens:plan[fp32,exact,block=512]",
    "segment_mean[mean,bf16]",
    "segment_mean_backward:gradient[mean,bf16,1000]",
    "select_tokens[smallest,fp32,16384]",
    "vic_cluster:tile[paper,bf16,D=1024,tile=32",
    "vic_cluster:tile[paper,bf16,D=1024,tile=64",
    "vic_cluster:parent[released,bf16,D=1024,tile=32,stored",
    "vic_cluster:gamma[released,bf16]",
    "vic_cluster_varlen:init[paper,bf16,D=1024,tile=64",
)


def main() -> None:
    triton.knobs.cache.dir = tempfile.mkdtemp()
    specs = collect()
    every = [spec for of_op in specs.values() for spec in of_op]
    found: dict[str, Any] = {
        "version": results.version(),
        "problems": {v: results.problems(specs, results.read(v)["entries"]) for v in results.VERSIONS},
        "page": table.render(specs) == table.PATH.read_text(),
        "planted": planted(every),
        "siblings": siblings(every),
        "live": {},
    }
    for start in REPRESENTATIVES:
        chosen = [spec for spec in every if spec.name.startswith(start)]
        found["live"][start] = {spec.name: compiled_now(spec) for spec in chosen if targets_of(spec, ARCHITECTURES)}
    json.dump(found, sys.stdout)


def compiled_now(spec: Any) -> dict[str, Any]:
    """By architecture: the row, the committed row if there is one of this Triton, what is wrong."""
    committed = results.read(results.version())["entries"].get(spec.name, {"rows": {}})["rows"]
    rows = compile_spec(spec, targets_of(spec, ARCHITECTURES))
    return {
        name: {"row": list(row), "committed": committed.get(name), "wrong": failures(spec, TARGETS[name], row)}
        for name, row in rows.items()
    }


def planted(every: list[Any]) -> dict[str, list[str]]:
    """What is said of configurations that are wrong on purpose, and of tables that are."""
    norms = next(spec for spec in every if spec.name.startswith("key_norms["))
    spilling = replace(norms, options={"maxnreg": 24})
    claiming = replace(norms, claims={"cuda:80": "mma", "cuda:90": "wgmma", "hip": "mfma"})
    said = {}
    for name, spec in (("spill", spilling), ("claim", claiming)):
        rows = compile_spec(spec, targets_of(spec, ARCHITECTURES))
        said[name] = [what for target, row in rows.items() for what in failures(spec, TARGETS[target], row)]
        if name == "claim":
            large = rows["sm_90"]._replace(shared=TARGETS["sm_90"].shared_memory + 1)
            said["shared memory"] = failures(norms, TARGETS["sm_90"], large)
            entry = {"digest": digest(norms), "rows": {t.name: list(rows["sm_90"]) for t in targets_of(norms)}}
    specs = {"key_norms": [norms]}
    less = {name: row for name, row in entry["rows"].items() if name != "sm_86"}
    said["right"] = results.problems(specs, {norms.name: entry})
    said["stale"] = results.problems(specs, {norms.name: {**entry, "digest": "0"}})
    said["other code"] = results.problems({"key_norms": [replace(norms, num_warps=2)]}, {norms.name: entry})
    said["missing"] = results.problems(specs, {norms.name: {**entry, "rows": less}})
    said["none"] = results.problems(specs, {norms.name: entry, "gone": entry})
    said["where it cannot be"] = results.problems({"": [replace(norms, backends=("hip",))]}, {norms.name: entry})
    return said


def siblings(every: list[Any]) -> dict[str, bool]:
    """Whether architectures that share a PTX do get the same from Triton."""
    chosen = [spec for spec in every if spec.name.startswith(("key_norms[l2,bf16,32x128]", "segment_mean[mean,bf16"))]
    return {
        f"{spec.name} on {target.name}": ptx_of(spec, target) == ptx_of(spec, TARGETS[target.sibling])
        for spec in chosen
        for target in TARGETS.values()
        if target.sibling is not None
    }


if __name__ == "__main__":
    main()
