"""What commands print beside their data."""

import pytest

from trio_p2p import limits
from trio_p2p.cli.console import documents_text, open_progress

STEP = limits.PROGRESS_LINE_DOCUMENTS


def test_progress_in_a_pipe_is_a_line_for_each_so_many_documents(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_progress("documents") as show:
        for completed in (1, STEP - 1, STEP, STEP + 1, 3 * STEP + 7):
            show(completed, 4 * STEP)
    output, messages = capsys.readouterr()
    assert output == ""
    assert messages.splitlines() == ["documents: 5,000 of 20,000", "documents: 15,007 of 20,000"]


def test_progress_without_a_known_end_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_progress("imported") as show:
        show(STEP, None)
    assert capsys.readouterr().err == "imported: 5,000\n"


def test_one_document_is_not_many() -> None:
    assert [documents_text(count) for count in (0, 1, 2000)] == [
        "0 documents",
        "1 document",
        "2,000 documents",
    ]
