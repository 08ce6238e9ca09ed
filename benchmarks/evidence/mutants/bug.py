"""A planted bug."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bug:
    op: str
    layer: str  # "reference", "checks", "C++" or "Triton"
    file: str  # from the root of the repository
    old: str  # the text that is replaced, the whole file for bugs in Python
    new: str
    what: str
    equivalent: str = ""  # the reason why no test can tell, where that is so

    def planted_in(self, tree: Path) -> None:
        path = tree / self.file
        text = path.read_text()
        if text.count(self.old) < 1:
            raise ValueError(f"{self.file} no longer has the text of the bug {self.what!r}")
        path.write_text(text.replace(self.old, self.new, 1))
