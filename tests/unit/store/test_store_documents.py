from __future__ import annotations

from itertools import chain

import pytest

from trio_p2p import limits
from trio_p2p.errors import (
    ClockSkewError,
    ConflictError,
    DocumentNotFoundError,
    StoreCorruptError,
)
from trio_p2p.ids import SourceID
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.version import Order, TreeRevisionID, Version
from trio_p2p.store import changes, documents, keys, schema
from trio_p2p.store.documents import ANY
from trio_p2p.testing.databases import open_test_database

C = 1
BOB = SourceID(b"b" * 16)
ONE = b"\xa1aa\x01"
TWO = b"\xa1aa\x02"


@pytest.fixture
def put(engine):
    async def put(document_id, revision, collection=C):
        return await engine.write(
            lambda txn: documents.put_revision(txn, collection, document_id, revision)
        )

    return put


@pytest.fixture
def edit(engine):
    async def edit(document_id, body, expected=ANY):
        return await engine.write(lambda txn: documents.edit(txn, C, document_id, body, expected))

    return edit


@pytest.fixture
def get(engine):
    def get(document_id):
        with engine.read() as txn:
            return documents.get(txn, C, document_id)

    return get


@pytest.fixture
def scan(engine):
    """The IDs that a whole scan gives, slice by slice."""

    def scan(**options):
        found, start = [], options.pop("start", None)
        while True:
            with engine.read() as txn:
                rows, start = documents.scan(txn, C, start=start, **options)
            found.append([document_id for document_id, _ in rows])
            if start is None:
                return found

    return scan


async def test_a_revision_becomes_current_whatever_was_before(put, get, revision, notes):
    assert await put("a", revision(5)) == 1
    assert await put("a", revision(3, body=TWO, source=BOB)) == 2
    assert get("a") == (revision(3, body=TWO, source=BOB), 2)
    assert (notes.count, notes.last_sequence) == (1, 2)


async def test_the_head_has_no_body(put, revision, engine):
    await put("a", revision(5))
    with engine.read() as txn:
        assert documents.head(txn, C, "a") == (revision(5, body=EMPTY_BODY), 1)
        assert documents.head(txn, C, "b") is None


async def test_live_documents_are_counted(put, revision, notes):
    for document_id, time, deleted, count in (
        ("a", 1, False, 1),
        ("b", 1, False, 2),
        ("a", 2, True, 1),
        ("a", 3, True, 1),
        ("c", 1, True, 1),
        ("c", 2, False, 2),
        ("c", 3, False, 2),
    ):
        await put(document_id, revision(time, deleted=deleted))
        assert notes.count == count


async def test_collections_are_apart(put, revision, db, get):
    other = await db.create_collection("other")
    await put("a", revision(1), other.number)
    await put("b", revision(2))
    assert get("a") is None
    assert (other.count, other.last_sequence) == (1, 1)
    assert (db.default_collection.count, db.default_collection.last_sequence) == (1, 1)
    with db.engine.read() as txn:
        rows = changes.read_since(txn, C, 0, 10).rows
    assert [row.document_id for row in rows] == ["b"]


async def test_a_version_too_far_ahead_is_refused_and_the_job_may_go_on(engine, revision, notes):
    def job(txn):
        with pytest.raises(ClockSkewError):
            documents.put_revision(txn, C, "a", revision(limits.CLOCK_SKEW_NS_MAX + 1))
        documents.put_revision(txn, C, "b", revision(limits.CLOCK_SKEW_NS_MAX))

    await engine.write(job)
    assert (notes.count, notes.last_sequence) == (1, 1)


async def test_a_version_far_ahead_among_the_previous_ones_is_refused_too(engine, revision):
    ahead = revision(1, (limits.CLOCK_SKEW_NS_MAX + 1, BOB))
    with pytest.raises(ClockSkewError):
        await engine.write(lambda txn: documents.put_revision(txn, C, "a", ahead))


async def test_an_edit_is_later_than_all_it_was_made_from(put, edit, revision, engine):
    arrived = revision(10**9, (2 * 10**9, BOB))
    await put("a", arrived)
    stored = await edit("a", TWO)
    assert stored.revision.version == stored.revision.vector.greatest()
    assert stored.revision.version.source == engine.source
    assert stored.revision.compare(arrived) is Order.NEWER
    assert stored.sequence == 2


async def test_an_edit_of_a_tree_revision_keeps_its_tree(put, edit):
    trees = (TreeRevisionID(2, b"\x02" * 20), TreeRevisionID(1, b"\x01" * 20))
    await put("a", Revision.from_tree(trees, ONE, deleted=False))
    edited = (await edit("a", TWO)).revision
    assert edited.trees == trees
    assert not edited.is_legacy
    assert len(list(edited.vector)) == 1


async def test_a_first_edit_has_one_version(edit, get):
    stored = await edit("a", ONE)
    assert list(stored.revision.vector) == [stored.revision.version]
    assert get("a") == stored


async def test_deleting_leaves_a_tombstone_that_follows_on_the_document(edit, get):
    first = await edit("a", ONE)
    stored = await edit("a", None)
    assert stored.revision.deleted
    assert stored.revision.body == EMPTY_BODY
    assert stored.revision.compare(first.revision) is Order.NEWER
    assert get("a") == stored


@pytest.mark.parametrize("deleted", [False, True])
async def test_nothing_live_cannot_be_deleted(edit, notes, deleted):
    if deleted:
        await edit("a", ONE)
        await edit("a", None)
    before = notes.last_sequence
    with pytest.raises(DocumentNotFoundError) as caught:
        await edit("a", None)
    assert caught.value.facts == {"document_id": "a"}
    assert notes.last_sequence == before


async def test_a_document_written_again_after_its_deletion_follows_on_the_tombstone(edit):
    await edit("a", ONE)
    tombstone = (await edit("a", None)).revision
    again = (await edit("a", TWO, expected=None)).revision
    assert again.compare(tombstone) is Order.NEWER


async def test_an_edit_that_expects_the_current_version_is_made(edit):
    first = await edit("a", ONE)
    second = await edit("a", TWO, expected=first.revision.version)
    tombstone = await edit("a", None, expected=second.revision.version)
    await edit("a", ONE, expected=tombstone.revision.version)


async def test_an_edit_that_expects_something_else_is_a_conflict(edit, get):
    never = Version(1 << 50, BOB)
    first = await edit("a", ONE)
    second = await edit("a", TWO)
    for document_id, expected in (
        ("a", None),
        ("a", first.revision.version),
        ("a", never),
        ("absent", never),
    ):
        with pytest.raises(ConflictError) as caught:
            await edit(document_id, ONE, expected=expected)
        assert caught.value.expected == expected
        assert caught.value.current == (second if document_id == "a" else None)
    assert get("a") == second


@pytest.fixture
async def scanned(put, revision):
    for document_id in ("a", "a b", "b", "ba", "bé", "b\U0010ffff", "c", "é"):
        await put(document_id, revision(1, deleted=document_id == "ba"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a", "a b", "b", "bé", "b\U0010ffff", "c", "é"]),
        ({"include_deleted": True}, ["a", "a b", "b", "ba", "bé", "b\U0010ffff", "c", "é"]),
        ({"prefix": "b"}, ["b", "bé", "b\U0010ffff"]),
        ({"prefix": "b", "start": "bb"}, ["bé", "b\U0010ffff"]),
        ({"prefix": "b", "start": "a", "end": "bé"}, ["b"]),
        ({"start": "a b", "end": "c"}, ["a b", "b", "bé", "b\U0010ffff"]),
        ({"start": "c", "end": "b"}, []),
        ({"prefix": "x"}, []),
        ({"start": "z" * 1000}, ["é"]),
        ({"end": "\ud800"}, ["a", "a b", "b", "bé", "b\U0010ffff", "c", "é"]),
    ],
)
async def test_a_scan_gives_what_lies_in_its_bounds(scanned, scan, options, expected):
    assert list(chain(*scan(**options))) == expected
    assert list(chain(*scan(**options, limit=1))) == expected


async def test_a_scan_of_an_empty_collection_is_empty(scan, engine, db, revision):
    other = await db.create_collection("other")
    await engine.write(lambda txn: documents.put_revision(txn, other.number, "a", revision(1)))
    assert scan() == [[]]


async def test_a_slice_counts_tombstones(scanned, scan):
    assert [len(slice_) for slice_ in scan(prefix="b", limit=2)] == [1, 2]


async def test_large_bodies_end_a_slice_early(put, revision, scan, monkeypatch):
    monkeypatch.setattr(limits, "SCAN_SLICE_BYTES", 1000)
    for document_id in "abcde":
        await put(document_id, revision(1, body=bytes(600)))
    assert scan() == [["a", "b"], ["c", "d"], ["e"]]


async def test_large_tombstones_end_a_slice_early_though_they_are_left_out(
    put, revision, scan, monkeypatch
):
    monkeypatch.setattr(limits, "SCAN_SLICE_BYTES", 1000)
    for document_id in "abcd":
        await put(document_id, revision(1, body=bytes(600), deleted=True))
    await put("e", revision(1))
    assert scan() == [[], [], ["e"]]


async def test_a_stored_clock_that_is_behind_a_version_is_damage(path):
    """The counter has no checksum, and a new version must be later than what it replaces."""
    now = 1_800_000_000 * 10**9
    async with open_test_database(path, clock=lambda: now) as db:
        first = await db.default_collection.put("a", {"n": 1})
        second = await db.default_collection.put("a", {"n": 2})

        def turn_back(txn):
            earlier = keys.number(first.version.time - 1)
            txn.raw.put(schema.META_CLOCK, earlier, db=txn.tables.meta)

        await db.engine.write(turn_back)
    async with open_test_database(path, clock=lambda: now) as db:
        with pytest.raises(StoreCorruptError, match="clock"):
            await db.default_collection.put("a", {"n": 3})
        assert db.default_collection.get("a").version == second.version
