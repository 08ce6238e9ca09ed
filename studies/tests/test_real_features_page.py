"""studies/results/real-features.md says what the committed result says."""

import copy
import re
from typing import Any

from studies.real_features import document


def test_the_page_is_the_result() -> None:
    page = document.page(document.committed())
    assert document.PAGE.read_text() == page, "run `python -m studies.real_features --page`"


def test_the_picture_is_there_and_small() -> None:
    content = document.PICTURE.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) < 400_000


def scaled(value: Any) -> Any:
    """Every measured number a little larger."""
    if isinstance(value, dict):
        return {key: scaled(part) for key, part in value.items()}
    if isinstance(value, list):
        return [scaled(part) for part in value]
    return value * 1.37 + 3 if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_every_number_follows_the_result() -> None:
    """No measured cell of a table survives when all measurements change."""
    result = document.committed()
    changed = copy.deepcopy(result)
    changed["pictures"], changed["stand_ins"] = scaled(result["pictures"]), scaled(result["stand_ins"])

    def sections(found: dict[str, Any]) -> list[list[str]]:
        tables = re.findall(r"(?m)(?:^\|.*\n)+", document.page(found))
        return [[cell for row in text.splitlines()[2:] for cell in row.split("|")[2:-1]] for text in tables]

    before, after = sections(result), sections(changed)
    assert len(before) == 9
    same = {a for x, y in zip(before[1:], after[1:], strict=True) for a, b in zip(x, y, strict=True) if a == b}
    alphas = [f"{alpha:g}" for _, alpha in result["settings"]["presets"].values()]
    clusterings = len(alphas) * len(next(iter(result["pictures"].values())))
    assert {cell.strip() for cell in same} <= {*alphas, str(clusterings)}


def test_claims_can_fail() -> None:
    result = document.committed()
    before = document.claims(result)
    row = next(iter(result["pictures"][str(result["settings"]["side"])].values()))
    run = row["presets"]["1/9"]
    row["all"]["duplicates"], run["agreement"]["parent"], run["largest"] = 1, 0.99, 0.7
    row["attention"]["top"]["0.3"] = 0.4
    after = document.claims(result)
    lost = [sum(a.holds) - sum(b.holds) for a, b in zip(before, after, strict=True)]
    assert sorted(lost) == [0] * (len(lost) - 4) + [1] * 4
    assert "**44 of 45 clusterings**" in after[0].row()[2]
