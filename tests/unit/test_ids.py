import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import InvalidDocumentError
from trio_p2p.ids import (
    SourceID,
    collection_name,
    document_id,
    format_source_id,
    full_name,
    parse_source_id,
    source_id,
)

source_ids = st.binary(min_size=16, max_size=16).filter(any).map(SourceID)


@pytest.mark.parametrize(
    "text", ["a", "x" * 240, "é" * 120, "with spaces / and :", "a_b", "-", "名前", "\u00a0"]
)
def test_a_document_id_is_up_to_240_bytes_of_text(text):
    assert document_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 241,
        "é" * 121,
        "_design",
        "a\x00b",
        "line\n",
        "\x7f",
        "\x9f",
        "\ud800",
        b"a",
        1,
        None,
    ],
)
def test_other_document_ids_are_refused(text):
    with pytest.raises(InvalidDocumentError):
        document_id(text)


@given(st.text())
def test_whatever_text_is_either_a_document_id_or_refused(text):
    try:
        assert document_id(text) == text
    except InvalidDocumentError:
        assert not text.isidentifier() or text[0] == "_" or len(text.encode()) > 240


@pytest.mark.behaviour("V2")
@given(source_ids)
def test_source_ids_round_trip_through_text(source):
    text = format_source_id(source)
    assert len(text) == 22
    assert parse_source_id(text) == source


def test_the_text_of_a_source_id_is_base64():
    raw = bytes.fromhex("45ebe2b22a27f93ade7be1277287629e")
    assert format_source_id(source_id(raw)) == "Revision+Tree+Encoding"
    assert parse_source_id("Revision+Tree+Encoding") == raw


@pytest.mark.behaviour("V2")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "AliceAliceAliceAliceA",
        "AliceAliceAliceAliceAAA",
        "AliceAliceAliceAliceAA==",
        "AliceAliceAliceAliceAA\n",
        " AliceAliceAliceAliceA",
        "Alice-AliceAliceAliceA",
        "Alice_AliceAliceAliceA",
        "AliceAliceAliceAliceAé",
        "AliceAliceAliceAliceAB",
        "A" * 22,
    ],
)
def test_other_spellings_of_a_source_id_are_refused(text):
    with pytest.raises(ValueError, match="source ID"):
        parse_source_id(text)


@pytest.mark.behaviour("V2")
@pytest.mark.parametrize("raw", [b"", b"x" * 15, b"x" * 17, bytes(16)])
def test_a_source_id_is_16_bytes_and_not_all_zero(raw):
    with pytest.raises(ValueError, match="source ID"):
        source_id(raw)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("notes", ("_default", "notes")),
        ("_default", ("_default", "_default")),
        ("_default._default", ("_default", "_default")),
        ("_default.notes", ("_default", "notes")),
        ("shop.notes", ("shop", "notes")),
        ("a-b_c%d.9", ("a-b_c%d", "9")),
        ("x" * 251, ("_default", "x" * 251)),
    ],
)
def test_a_collection_name_is_split_into_scope_and_name(text, parts):
    assert collection_name(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        ".notes",
        "shop.",
        "_notes",
        "%notes",
        "_shop.notes",
        "shop._default",
        "a.b.c",
        "é",
        "a b",
        "notes\n",
        "x" * 252,
    ],
)
def test_other_collection_names_are_refused(text):
    with pytest.raises(ValueError, match="collection"):
        collection_name(text)


@pytest.mark.parametrize("text", ["notes", "_default", "shop.notes"])
def test_full_name_joins_what_collection_name_split(text):
    assert full_name(*collection_name(text)) == text
