"""Write the README's generated blocks from committed files: the newest result of each benchmark, and docs/demo.txt.

The block of the GPU takes results of `make gpu-report` alone, and stops at a dry run among them.

python -m benchmarks.readme [--check]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import features
from benchmarks.gpu.tables import readme_block
from benchmarks.quality import document as quality

ROOT = Path(__file__).parent.parent
README, DEMO, RESULTS = ROOT / "README.md", ROOT / "docs" / "demo.txt", ROOT / "benchmarks" / "results" / "cpu"


def newest(name: str) -> dict[str, Any] | None:
    found = [json.loads(path.read_text()) for path in RESULTS.glob(f"*-{name}.json")]
    return max(found, key=lambda result: result["date"], default=None)


def origin(result: dict[str, Any]) -> str:
    machine = result["machine"]
    native = machine["native"] or {}
    return (
        f"{machine['processor']}, {machine['threads']} threads, {native.get('isa_active', 'no native kernels')}, "
        f"torch {machine['torch']}, commit {result['commit']}, {result['date'][:10]}"
    )


def ratios_table(result: dict[str, Any]) -> str:
    lines = ["| op | shape | against | ours | ratio | target |", "|---|---|---|--:|--:|--:|"]
    for row in result["ratios"]:
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        if row["target"] is not None and row["ratio"] > row["target"]:
            target += " (missed)"
        ours = f"{row['ours_ms']:.2f} ms"
        lines.append(f"| `{row['op']}` | {row['shape']} | {row['other']} | {ours} | {row['ratio']:.3f} | {target} |")
    sizes = ", ".join(f"N = {row['n']}: {row['extra_mb']:.0f} MB" for row in result["memory"])
    return "\n".join([*lines, "", f"Peak extra memory of `vic_cluster` at D = 1024: {sizes}.", f"({origin(result)})"])


def prefill_lines(result: dict[str, Any]) -> str:
    config = result["config"]
    kept = " -> ".join(map(str, [config["visual_tokens"], *config["kept"]]))
    shape = f"{config['layers']} layers, {config['dtype']}, {kept} visual tokens"
    return (
        f"Prefill of LLaVA-1.5-7B's shape with random weights, {shape}: "
        f"**{result['vitcop_over_precomputed']:.3f}** of the same counts with precomputed indices (what choosing "
        "costs), "
        f"{result['vitcop_over_unpruned']:.3f} of the unpruned prefill, vision tower included.\n({origin(result)})"
    )


def gpu_results() -> list[tuple[Path, dict[str, Any]]]:
    """Every committed file that a GPU report wrote, wherever it lies."""
    found = [(path, json.loads(path.read_text())) for path in sorted(RESULTS.parent.rglob("*.json"))]
    return [(path, result) for path, result in found if result.get("benchmark") == "gpu-report"]


def blocks() -> dict[str, str]:
    _, _, demo = DEMO.read_text().partition("\n\n")
    demo = "\n".join(line.rstrip() for line in demo.splitlines())
    ratios, prefill = newest("ratios"), newest("prefill")
    bench = [
        "Not yet measured." if ratios is None else ratios_table(ratios),
        "" if prefill is None else prefill_lines(prefill),
    ]
    found = {"demo": f"```\n{demo}\n```", "bench": "\n\n".join(filter(None, bench)), "gpu": readme_block(gpu_results())}
    found["quality"] = quality.readme_block()
    if "<!-- begin features -->" in README.read_text():
        found["features"] = features.markdown(json.loads(features.TABLE.read_text()))
    return found


def fill(text: str, blocks: dict[str, str], name: str) -> str:
    """`text` of the file called `name` with its generated blocks written anew."""
    for mark, block in blocks.items():
        pattern = re.compile(rf"(<!-- begin {mark} -->\n).*?(<!-- end {mark} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{name}: no block named {mark}")
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def generated() -> str:
    return fill(README.read_text(), blocks(), README.name)


def main() -> None:
    text = generated()
    if "--check" in sys.argv:
        if text != README.read_text():
            raise SystemExit("README.md does not match the committed results; run `make readme`")
        return
    README.write_text(text)


if __name__ == "__main__":
    main()
