from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import ids, limits
from trio_p2p.errors import InvalidDocumentError
from trio_p2p.model.version import Version
from trio_p2p.store import keys

numbers = st.integers(0, 2**32 - 1)
sequences = st.integers(0, 2**64 - 1)
any_text = st.text(st.characters(), max_size=600)
versions = st.builds(
    Version, st.integers(1, 2**63 - 1), st.binary(min_size=16, max_size=16).filter(any)
)


@st.composite
def document_ids(draw):
    try:
        return ids.document_id(draw(st.text(min_size=1, max_size=30)))
    except InvalidDocumentError:
        return ids.document_id(draw(st.text("az~é€😀", min_size=1, max_size=50)))


@given(st.tuples(numbers, document_ids()), st.tuples(numbers, document_ids()))
def test_documents_lie_in_order_of_collection_then_id(one, other):
    assert (keys.document(*one) < keys.document(*other)) == (one < other)


@given(st.tuples(numbers, sequences), st.tuples(numbers, sequences))
def test_changes_lie_in_order_of_collection_then_sequence(one, other):
    assert (keys.change(*one) < keys.change(*other)) == (one < other)


@given(numbers, sequences.filter(lambda n: n < 2**64 - 1), st.integers())
def test_a_bound_behind_a_change_divides_changes_as_their_sequences_do(collection, one, other):
    is_behind = keys.change(collection, one) >= keys.behind_change(collection, other)
    assert is_behind == (one > other)


@given(numbers, document_ids())
def test_a_document_key_tells_its_document(collection, document_id):
    assert keys.read_document(memoryview(keys.document(collection, document_id))) == document_id


@given(numbers, document_ids(), any_text)
def test_a_bound_divides_documents_as_their_ids_do(collection, document_id, text):
    is_behind = keys.document(collection, document_id) >= keys.bound(collection, text)
    raw = text.encode("utf-8", "surrogatepass")
    assert is_behind == (document_id.encode() >= raw)


@given(numbers, document_ids(), document_ids())
def test_only_keys_that_begin_with_a_prefix_lie_between_it_and_its_end(collection, one, other):
    prefix = keys.document(collection, one)
    between = prefix <= keys.document(collection, other) < keys.behind(prefix)
    assert between == other.startswith(one)


@given(numbers, document_ids(), versions, document_ids(), versions)
def test_several_revisions_of_a_document_lie_together(
    collection, one, version, other, other_version
):
    key = keys.revision(collection, other, other_version)
    mine = key.startswith(keys.of_document(collection, one))
    between = keys.of_document(collection, one) <= key < keys.behind_document(collection, one)
    assert mine == between == (one == other)
    assert keys.read_revision(keys.revision(collection, one, version)) == one


@given(numbers, document_ids(), numbers, document_ids())
def test_what_peers_have_of_a_document_lies_together(collection, one, remote, other):
    key = keys.known_revision(collection, other, remote)
    assert key.startswith(keys.of_document(collection, one)) == (one == other)
    assert keys.read_known_revision(key) == (collection, other)
    assert keys.read_remote(memoryview(key)) == remote


@given(st.tuples(numbers, sequences, sequences), st.tuples(numbers, sequences))
def test_marks_lie_behind_the_changes_they_have_come_to(mark, change):
    assert (keys.mark(*mark) >= keys.change(*change)) == (mark[:2] >= change)


@given(any_text, any_text)
def test_text_keys_differ_as_their_texts_do(one, other):
    assert (keys.text(one) == keys.text(other)) == (one == other)


@pytest.mark.parametrize("text", ["", "x", "x" * 511, "x" * 512, "é" * 256, "\ud800"])
def test_text_keys_fit_into_lmdb(text):
    assert 0 < len(keys.text(text)) <= keys.KEY_BYTES_MAX


def test_the_longest_document_id_fits_into_every_key():
    longest = ids.document_id("x" * limits.DOCUMENT_ID_BYTES_MAX)
    version = Version(1, b"s" * 16)
    for key in (
        keys.document(1, longest),
        keys.known_revision(1, longest, 1),
        keys.revision(1, longest, version),
        keys.bound(1, "é" * 1000),
    ):
        assert len(key) <= keys.KEY_BYTES_MAX
