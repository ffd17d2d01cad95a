from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import StoreCorruptError
from trio_p2p.ids import SourceID
from trio_p2p.model.blob import format_digest
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.version import TreeRevisionID, Version, VersionVector
from trio_p2p.store import blob_uses, keys, records
from trio_p2p.store.records import CollectionState, Record

VECTORS = Path(__file__).parents[2] / "vectors" / "store_records.json"
ANN, BOB, EVE = (SourceID(letter * 16) for letter in (b"a", b"b", b"e"))
SHA1 = bytes(range(20))

sources = st.binary(min_size=16, max_size=16).filter(any).map(SourceID)
versions = st.builds(Version, st.integers(1, 2**64 - 1), sources)
trees = st.builds(TreeRevisionID, st.integers(1, 2**23 - 1), st.binary(min_size=1, max_size=32))
several = st.lists(versions, max_size=3).map(tuple)
vectors = st.builds(VersionVector, versions, several, several)
revisions = st.builds(
    Revision, vectors, st.binary(max_size=50), st.booleans(), st.lists(trees, max_size=3).map(tuple)
)
legacy = st.builds(
    lambda ids: Revision.from_tree(ids, b"\xa0", deleted=False),
    st.lists(trees, min_size=1, max_size=3).map(tuple),
)


@given(revisions, st.integers(0, 2**64 - 1))
def test_a_revision_record_reads_back_as_it_was(revision, sequence):
    raw = memoryview(records.pack_revision(revision, sequence))
    assert records.unpack_revision(raw) == (revision, sequence)
    assert records.unpack_place(raw) == (revision.deleted, sequence)
    head, _ = records.unpack_revision(raw, with_body=False)
    assert head == Revision(revision.vector, EMPTY_BODY, revision.deleted, revision.trees)
    record = Record(raw)
    assert (record.revision, record.sequence) == (revision, sequence)
    assert (record.deleted, record.body) == (revision.deleted, revision.body)


@given(revisions | legacy, st.text(min_size=1))
def test_a_change_row_reads_back_as_it_was(revision, document_id):
    raw = memoryview(records.pack_change(revision, document_id.encode()))
    row = records.unpack_change(7, raw)
    assert row == (7, document_id, revision.id, revision.deleted, len(revision.body))
    assert type(row.revision_id) is type(revision.id)


@given(versions | trees, st.binary(max_size=5))
def test_a_revision_id_tells_its_own_end(revision_id, behind):
    raw = records.pack_revision_id(revision_id)
    assert records.unpack_revision_id(raw + behind) == revision_id


@pytest.mark.parametrize("length", [0, 10, 42])
def test_a_revision_record_cut_short_is_damage(length):
    record = records.pack_revision(Revision(VersionVector(Version(1, ANN))), 1)
    with pytest.raises(StoreCorruptError, match="damaged"):
        records.unpack_revision(memoryview(record)[:length])


def test_a_revision_record_with_a_wrong_length_inside_is_damage():
    record = bytearray(records.pack_revision(Revision(VersionVector(Version(1, ANN))), 1))
    record[12] += 1
    with pytest.raises(StoreCorruptError, match="damaged"):
        records.unpack_revision(memoryview(record))


@pytest.mark.parametrize("length", [0, 10, 16, 42])
@pytest.mark.parametrize("part", ["revision", "sequence", "deleted", "body"])
def test_what_a_damaged_record_no_longer_tells_is_not_made_up(part, length):
    whole = Revision(VersionVector(Version(1, ANN)), b"\xa1aa\x01")
    packed = memoryview(records.pack_revision(whole, 1))
    try:
        told = getattr(Record(packed[:length]), part)
    except StoreCorruptError:
        return
    assert told == getattr(Record(packed), part)


def golden():
    tree = TreeRevisionID(3, SHA1)
    single = Revision(VersionVector(Version(0x18F0_0000_0000_0001, ANN)), b"\xa1aa\x01")
    merged = Revision(
        VersionVector(
            Version(0x18F0_0000_0000_0003, ANN),
            (Version(0x18F0_0000_0000_0002, BOB), Version(0x18F0_0000_0000_0001, ANN)),
            (Version(0x18E0_0000_0000_0000, EVE),),
        ),
        deleted=True,
        trees=(tree, TreeRevisionID(2, b"\xff" * 16)),
    )
    old = Revision.from_tree((tree,), b"\xa0", deleted=False)
    properties = {"@type": "blob", "digest": format_digest(SHA1), "length": 1}
    naming = Revision(single.vector, encode_body({"b": properties}))
    return {
        "revision: one version": records.pack_revision(single, 5),
        "revision: merged tombstone with trees": records.pack_revision(merged, 6),
        "revision: tree": records.pack_revision(old, 0),
        "change: version": records.pack_change(single, "café".encode()),
        "change: tombstone": records.pack_change(merged, b"b"),
        "change: tree": records.pack_change(old, b"c"),
        "revision: with a blob": records.pack_revision(naming, 5),
        "revision id: version": records.pack_revision_id(single.id),
        "revision id: tree": records.pack_revision_id(tree),
        "collection": records.pack_collection(CollectionState("shop.notes", 9, 4)),
        "peer checkpoint": records.pack_peer_checkpoint(7, 2, b"{}"),
        "key: collection": keys.collection(2),
        "key: document": keys.document(2, "café"),
        "key: change": keys.change(2, 9),
        "key: known": keys.known(3, 2, "b"),
        "key: conflict": keys.conflict(2, "b", single.version),
        "key: expiring": keys.number(1_800_000_000_000_000) + keys.document(2, "café"),
        "key: blob use": keys.blob_use(SHA1, blob_uses.CURRENT, keys.document(2, "café")),
        "key: text": keys.text("cp-1"),
        "key: long text": keys.text("x" * 512),
    }


def test_keys_and_records_are_the_bytes_of_this_format_version():
    """A difference here needs a new format version and a way to read the old one."""
    expected = json.loads(VECTORS.read_text())
    assert {name: raw.hex() for name, raw in golden().items()} == expected
