"""Documents as lines of JSON."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import InvalidDocumentError, open_database
from trio_p2p.cli import jsonl


@pytest.mark.parametrize(
    "line",
    [b"", b"nope", b"[1]", b'"text"', b"{}", b'{"_id": 3}', b'{"_id": null}', b'{"id": "a"}'],
)
def test_a_line_that_is_no_document_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidDocumentError):
        jsonl.parse_document(line)


def test_a_line_is_an_id_and_a_body() -> None:
    assert jsonl.parse_document(b'{"n": 1, "_id": "a"}\n') == ("a", {"n": 1})


async def test_a_stored_document_is_written_as_it_was_read(tmp_path: Path) -> None:
    line = b'{"_id":"a","n":[1,2.5,null,true,{"caf\xc3\xa9":"\xe2\x82\xac"}]}\n'
    async with open_database(tmp_path / "a.p2p") as database:
        document = await database.default_collection.put(*jsonl.parse_document(line))
    assert jsonl.format_document(document) == line


@given(line=st.binary(max_size=40))
def test_no_bytes_raise_anything_else(line: bytes) -> None:
    try:
        document_id, body = jsonl.parse_document(line)
    except InvalidDocumentError:
        return
    assert isinstance(document_id, str)
    assert isinstance(body, dict)
