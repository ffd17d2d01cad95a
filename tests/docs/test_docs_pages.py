"""Who follows the tutorial and the how-tos gets what they show."""

import re
from pathlib import Path

import pytest
from pages import PageRun, blocks_of

import trio_p2p

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*DOCS.glob("tutorial/*.md"), *DOCS.glob("howto/*.md"), *DOCS.glob("topics/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_page_works_as_it_stands(page: Path, tmp_path: Path) -> None:
    run = PageRun(tmp_path)
    try:
        for block in blocks_of(page):
            run.follow(block)
    finally:
        run.stop()


def test_output_other_than_shown_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n```sh\necho a\n```\n<!-- prints -->\n```text\nb\n```\n")
    run = PageRun(tmp_path)
    first, second = blocks_of(page)
    run.follow(first)
    with pytest.raises(AssertionError, match="is not"):
        run.follow(second)


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference" / "index.md").read_text()
    listed = set(re.findall(r"trio_p2p\.(\w+)", page))
    errors = {name for name in trio_p2p.__all__ if name.endswith("Error")}
    assert listed | errors == set(trio_p2p.__all__)
