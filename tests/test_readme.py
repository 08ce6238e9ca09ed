"""The README says what the committed results and files say."""

import re
from pathlib import Path

from benchmarks import readme

ROOT = Path(__file__).parent.parent


def test_generated_blocks_match_the_committed_results():
    assert readme.generated() == readme.README.read_text(), "run `make readme`"


def test_links_lead_to_files_of_the_repository():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme.README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_python_of_the_readme_compiles():
    snippets = re.findall(r"```python\n(.*?)```", readme.README.read_text(), re.DOTALL)
    assert len(snippets) >= 2
    for snippet in snippets:
        compile(snippet, "README.md", "exec")
