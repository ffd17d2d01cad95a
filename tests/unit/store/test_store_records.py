from __future__ import annotations

import json
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_p2p.errors import StoreCorruptError
from trio_p2p.ids import SourceID
from trio_p2p.model.blob import format_digest
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.version import TreeRevisionID, Version, VersionVector
from trio_p2p.store import blob_uses, keys, records
from trio_p2p.store.records import CollectionState, LocalCheckpoint, Record

VECTORS = Path(__file__).parents[2] / "vectors" / "store_records.json"
ANN, BOB, EVE = (SourceID(letter * 16) for letter in (b"a", b"b", b"e"))
SHA1 = bytes(range(20))
KEY = b"a key"

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
    raw = memoryview(records.pack_revision(revision, sequence, KEY))
    assert records.unpack_revision(raw, KEY) == (revision, sequence)
    assert records.unpack_place(raw, KEY) == (revision.deleted, sequence)
    head, _ = records.unpack_revision(raw, KEY, with_body=False)
    assert head == Revision(revision.vector, EMPTY_BODY, revision.deleted, revision.trees)
    record = Record(raw, KEY)
    assert (record.revision, record.sequence) == (revision, sequence)
    assert (record.deleted, record.body) == (revision.deleted, revision.body)


@given(revisions | legacy, st.text(min_size=1))
def test_a_change_row_reads_back_as_it_was(revision, document_id):
    raw = memoryview(records.pack_change(revision, document_id.encode(), KEY))
    row = records.unpack_change(7, raw, KEY)
    assert row == (7, document_id, revision.id, revision.deleted, len(revision.body))
    assert type(row.revision_id) is type(revision.id)


@given(versions | trees, st.binary(max_size=5))
def test_a_revision_id_tells_its_own_end(revision_id, behind):
    raw = records.pack_revision_id(revision_id)
    assert records.unpack_revision_id(raw + behind) == revision_id


@given(revisions | legacy, st.integers(0, 2**64 - 1))
def test_a_revision_record_tells_its_revision_without_being_unpacked(revision, sequence):
    raw = memoryview(records.pack_revision(revision, sequence, KEY))
    assert records.current_version(raw) == revision.version.to_bytes()
    assert records.current_id(raw) == records.pack_revision_id(revision.id)


@given(revisions | legacy, st.integers(0, 2**64 - 1))
def test_a_revision_record_can_be_put_under_another_key(revision, sequence):
    raw = memoryview(records.pack_revision(revision, sequence, KEY))
    assert records.under_key(raw, b"other") == records.pack_revision(revision, sequence, b"other")


@pytest.mark.parametrize("length", [0, 10, 42])
def test_a_revision_record_cut_short_is_damage(length):
    record = records.pack_revision(Revision(VersionVector(Version(1, ANN))), 1, KEY)
    with pytest.raises(StoreCorruptError, match="damaged"):
        records.unpack_revision(memoryview(record)[:length], KEY)


@given(st.binary(max_size=40))
def test_what_is_too_short_for_a_revision_is_damage_even_with_a_right_checksum(raw):
    raw += zlib.crc32(raw, zlib.crc32(KEY)).to_bytes(4, "little")
    for read in (Record, records.unpack_revision):
        with suppress(StoreCorruptError):
            read(memoryview(raw), KEY)


def test_a_revision_record_with_a_wrong_length_inside_is_damage():
    record = bytearray(records.pack_revision(Revision(VersionVector(Version(1, ANN))), 1, KEY))
    record[12] += 1
    with pytest.raises(StoreCorruptError, match="damaged"):
        records.unpack_revision(memoryview(record), KEY)


WHOLE = [Record, records.unpack_revision]
WITHOUT_BODY = [partial(records.unpack_revision, with_body=False), records.unpack_place]


def is_damage(read, raw, key=KEY):
    with pytest.raises(StoreCorruptError, match="damaged"):
        read(memoryview(raw), key)
    return True


@given(revisions, st.data())
def test_a_revision_record_of_which_any_bits_changed_is_damage(revision, data):
    """Those of up to 32 in a row are found for certain."""
    raw = records.pack_revision(revision, 5, KEY)
    first = data.draw(st.integers(0, len(raw) * 8 - 1))
    changed = (data.draw(st.integers(1, 2**32 - 1)) << first) % 2 ** (len(raw) * 8) or 1
    damaged = (int.from_bytes(raw, "little") ^ changed).to_bytes(len(raw), "little")
    assert all(is_damage(read, damaged) for read in WHOLE)
    # Without the body, what is told is right all the same.
    for read in WITHOUT_BODY:
        with suppress(StoreCorruptError):
            assert read(memoryview(damaged), KEY) == read(memoryview(raw), KEY)


@given(revisions | legacy, st.integers(0, 2**16), st.integers(1, 255))
def test_a_change_row_of_which_a_byte_changed_is_damage(revision, place, change):
    raw = bytearray(records.pack_change(revision, b"name", KEY))
    raw[place % len(raw)] ^= change
    assert is_damage(partial(records.unpack_change, 7), raw)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**16), st.integers(1, 255))
def test_a_collection_record_of_which_a_byte_changed_is_damage(sequence, place, change):
    raw = bytearray(records.pack_collection(CollectionState("shop.notes", sequence, 4), KEY))
    assert records.unpack_collection(bytes(raw), KEY).last_sequence == sequence
    raw[place % len(raw)] ^= change
    assert is_damage(records.unpack_collection, raw)


@given(revisions, st.integers(0, 10_000))
def test_a_record_under_another_key_is_damage(revision, place):
    key = bytearray(KEY)
    key[place // 8 % len(key)] ^= 1 << place % 8
    raw = records.pack_revision(revision, 5, KEY)
    assert all(is_damage(read, raw, bytes(key)) for read in [*WHOLE, *WITHOUT_BODY])
    row = records.pack_change(revision, b"name", KEY)
    assert is_damage(partial(records.unpack_change, 7), row, bytes(key))


@given(revisions | legacy, st.integers(0, 200))
@example(Revision(VersionVector(Version(1, ANN)), b"\xa1aa\x01"), 47)  # Right before the body.
def test_what_is_cut_short_is_damage(revision, length):
    raw = records.pack_revision(revision, 5, KEY)
    if length < len(raw):
        assert all(is_damage(read, raw[:length]) for read in WHOLE)
        for read in WITHOUT_BODY:
            with suppress(StoreCorruptError):
                assert read(memoryview(raw)[:length], KEY) == read(memoryview(raw), KEY)
    row = records.pack_change(revision, b"name", KEY)
    if length < len(row):
        assert is_damage(partial(records.unpack_change, 7), row[:length])


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
        "revision: one version": records.pack_revision(single, 5, KEY),
        "revision: merged tombstone with trees": records.pack_revision(merged, 6, KEY),
        "revision: tree": records.pack_revision(old, 0, KEY),
        "change: version": records.pack_change(single, "café".encode(), KEY),
        "change: tombstone": records.pack_change(merged, b"b", KEY),
        "change: tree": records.pack_change(old, b"c", KEY),
        "revision: with a blob": records.pack_revision(naming, 5, KEY),
        "revision id: version": records.pack_revision_id(single.id),
        "revision id: tree": records.pack_revision_id(tree),
        "collection": records.pack_collection(CollectionState("shop.notes", 9, 4), KEY),
        "peer checkpoint": records.pack_peer_checkpoint(4, 2, 9, b"{}"),
        "local checkpoint": records.pack_local_checkpoint(LocalCheckpoint(3, 9, b"{}")),
        "key: collection": keys.collection(2),
        "key: document": keys.document(2, "café"),
        "key: change": keys.change(2, 9),
        "key: known revision": keys.known_revision(2, "b", 3),
        "key: conflict": keys.revision(2, "b", single.version),
        "key: base": keys.base(keys.of_document(2, "b"), single.version.to_bytes(), 9),
        "key: use": keys.use(3, 7),
        "key: mark": keys.mark(2, 9, 7),
        "key: expiring": keys.number(1_800_000_000_000_000) + keys.document(2, "café"),
        "key: blob use": keys.blob_use(SHA1, blob_uses.CURRENT, keys.document(2, "café")),
        "key: text": keys.text("cp-1"),
        "key: long text": keys.text("x" * 512),
    }


def test_keys_and_records_are_the_bytes_of_this_format_version():
    """A difference here needs a new format version and a way to read the old one."""
    expected = json.loads(VECTORS.read_text())
    assert {name: raw.hex() for name, raw in golden().items()} == expected
