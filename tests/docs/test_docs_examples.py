"""What the documents show is what the tree holds, and it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


SHOWN = [
    (path, text)
    for document in DOCUMENTS
    for path, text in re.findall(
        r"<!-- example: (\S+) -->\n```python\n(.*?)```", document.read_text(), re.DOTALL
    )
]


def test_every_example_is_shown_somewhere() -> None:
    assert {ROOT / path for path, _ in SHOWN} == set(ROOT.glob("examples/*.py"))


@pytest.mark.parametrize(("path", "text"), SHOWN, ids=[path for path, _ in SHOWN])
def test_an_example_is_shown_as_it_is(path: str, text: str) -> None:
    assert text == (ROOT / path).read_text()


def test_the_example_of_two_peers_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/two_peers.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 pushed, 1 pulled" in done.stdout
    assert "apple {'name': 'Apple', 'price': 120}" in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target
