"""Collect which calls of which model family are tested, from the marks on the tests, into docs/features.json.

    @pytest.mark.family("llava")                                  # on a test, a module's pytestmark, or a parameter
    @pytest.mark.feature("beam search")                           # has a test that it works
    @pytest.mark.feature("static cache", "refused")               # has a test that an error says no
    @pytest.mark.feature("beam search", "upstream bug", "where")  # has a test that pins a fault of transformers

python -m benchmarks.features [--check]
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "features.json"
FOLDERS = ["tests/adapters", "tests/distributed"]
STATUSES = ["tested", "refused", "upstream bug"]
FAMILIES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "internvl": "InternVL",
}
FEATURES = [
    "greedy",
    "sampling",
    "beam search",
    "assisted decoding",
    "prompt lookup",
    "padded batches, left and right",
    "several images or videos per prompt",
    "text-only samples",
    "several turns, one cache",
    "a new image in a later turn",
    "labels, loss and gradients",
    "logits_to_keep",
    "output_hidden_states",
    "inputs_embeds",
    "gradient checkpointing",
    "bfloat16",
    "eager attention",
    "FlashAttention's masks",
    "LoRA (peft)",
    "8-bit linear layers",
    "compiled decoder layers",
    "compiled vision tower",
    "static cache",
    "quantised cache",
    "memory",
    "device_map",
    "tensor parallel",
    "data parallel",
]


class Collector:
    """A pytest plugin: reads the marks of what is collected."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, set[tuple[str, str]]]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("feature"):
                family = item.get_closest_marker("family")
                name, status, note = self._read(item.nodeid, *mark.args, **mark.kwargs)
                if family is None or family.args[0] not in FAMILIES:
                    raise pytest.UsageError(
                        f"{item.nodeid}: expected a mark family({' | '.join(FAMILIES)}), got {family}"
                    )
                self.found.setdefault(name, {}).setdefault(family.args[0], set()).add((status, note))

    def _read(self, test: str, name: str, status: str = "tested", note: str = "") -> tuple[str, str, str]:
        for value, known in ((name, FEATURES), (status, STATUSES)):
            if value not in known:
                raise pytest.UsageError(f"{test}: feature: expected one of {known}, got {value!r}")
        return name, status, note

    def table(self) -> dict[str, dict[str, list[dict[str, str]]]]:
        """Feature -> family -> what its tests say, in a fixed order."""
        result = {}
        for feature in FEATURES:
            row = self.found.get(feature, {})
            cells = {
                f: sorted(row[f], key=lambda cell: (STATUSES.index(cell[0]), cell[1])) for f in FAMILIES if f in row
            }
            result[feature] = {f: [{"status": s, "note": n} for s, n in cell] for f, cell in cells.items()}
        return result


def collect() -> dict[str, Any]:
    collector = Collector()
    folders = [str(ROOT / folder) for folder in FOLDERS if (ROOT / folder).exists()]
    options = ["--collect-only", "-qq", "--no-header", "--rootdir", str(ROOT), "-m", "not speed"]
    code = pytest.main([*options, *folders], plugins=[collector])
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"collection failed: {code!r}")
    return collector.table()


def as_text(table: dict[str, Any]) -> str:
    return json.dumps(table, indent=1) + "\n"


def markdown(table: dict[str, Any]) -> str:
    """The README's table: features down, families across, notes below."""
    families = [family for family in FAMILIES if any(family in row for row in table.values())]
    notes: list[str] = []
    lines = [
        "| | " + " | ".join(FAMILIES[family] for family in families) + " |",
        "|---" * (len(families) + 1) + "|",
    ]
    for feature, row in table.items():
        cells = []
        for family in families:
            words = []
            for entry in row.get(family, []):
                if entry["note"] and entry["note"] not in notes:
                    notes.append(entry["note"])
                mark = f" ({notes.index(entry['note']) + 1})" if entry["note"] else ""
                words.append(entry["status"] + mark)
            cells.append(", ".join(words) or "-")
        if row:
            lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"({i}) {note}  " for i, note in enumerate(notes, 1))]).rstrip()


def main() -> None:
    text = as_text(collect())
    if "--check" in sys.argv:
        if not TABLE.exists() or text != TABLE.read_text():
            raise SystemExit(
                "docs/features.json does not match the marks of the tests; run python -m benchmarks.features"
            )
        return
    TABLE.write_text(text)


if __name__ == "__main__":
    main()
