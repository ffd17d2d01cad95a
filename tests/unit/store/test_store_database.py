from __future__ import annotations

import math
import time
import uuid

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import ids, limits
from trio_p2p.errors import (
    BlobNotFoundError,
    CollectionNotFoundError,
    ConfigurationError,
    ConflictError,
    DatabaseBusyError,
    DatabaseNotFoundError,
    DocumentNotFoundError,
    InvalidDocumentError,
    StoreClosedError,
    StoreError,
)
from trio_p2p.ids import SourceID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import TREE_SOURCE, Order, TreeRevisionID
from trio_p2p.store import changes, conflicts, documents
from trio_p2p.store.database import open_database
from trio_p2p.store.documents import ANY
from trio_p2p.testing.databases import open_test_database


async def identifiers(iterator):
    return [document.id async for document in iterator]


async def changed(collection, since=0):
    return [
        (change.sequence, change.document_id, change.deleted)
        async for change in collection.changes(since, live=False)
    ]


# --- Opening ---


async def test_a_database_opens_and_keeps_what_was_written(tmp_path):
    before = time.time_ns()
    async with open_database(tmp_path / "deep" / "shop.p2p") as db:
        await db.default_collection.put("a", {"price": 5})
        other = await db.create_collection("back.room")
        await other.put("b", {})
        await other.delete("b")
        identity = (db.id, db.source_id)
    async with open_database(tmp_path / "deep" / "shop.p2p", create=False) as db:
        assert (db.id, db.source_id) == identity
        assert db.default_collection.get("a").body == {"price": 5}
        other = db.collection("back.room")
        assert (other.count, other.last_sequence) == (0, 2)
        assert db.default_collection.count == 1
        again = await db.default_collection.put("a", {"price": 6})
        assert again.version.time > before
        assert (again.sequence, len(list(again.vector))) == (2, 1)


async def test_a_database_tells_what_it_is(db, path):
    assert db.path == path
    assert db.name == "shop"
    assert isinstance(db.id, uuid.UUID)
    assert len(ids.parse_source_id(db.source_id)) == 16
    assert str(db.id) in repr(db)


async def test_opening_fails_with_errors_that_name_the_path(path):
    with pytest.raises(DatabaseNotFoundError, match=str(path)):
        async with open_database(path, create=False):
            pass
    async with open_database(path):
        with pytest.raises(DatabaseBusyError, match=str(path)):
            async with open_database(path):
                pass


async def test_a_closed_database_refuses_everything(path):
    async with open_test_database(path) as db:
        notes = db.default_collection
        document = await notes.put("a", {})
        scan, feed = notes.documents(), notes.changes()
    assert document.body == {}
    with pytest.raises(StoreClosedError):
        notes.get("a")
    with pytest.raises(StoreClosedError):
        db.statistics()
    for use in (
        lambda: notes.put("a", {}),
        lambda: notes.delete("a"),
        lambda: notes.update("a", lambda body: body),
        lambda: db.create_collection("other"),
        lambda: anext(scan),
        lambda: anext(feed),
    ):
        with pytest.raises(StoreClosedError):
            await use()
    with pytest.raises(StoreClosedError):
        async with notes.batch() as batch:
            batch.put("a", {})


async def test_statistics_count_what_there_is_and_what_was_done(db, notes):
    await notes.put("a", {})
    await notes.put("b", {})
    await notes.delete("a")
    told = db.statistics()
    assert (told.collections, told.documents, told.commits, told.writes) == (1, 1, 3, 3)
    assert told.bytes_used > 0


# --- Collections ---


async def test_a_new_database_has_the_default_collection(db):
    assert db.collections() == [db.default_collection]
    assert db.collection("_default") is db.default_collection
    assert db.collection("_default._default") is db.default_collection
    told = db.default_collection
    assert (told.name, told.scope, told.full_name) == ("_default", "_default", "_default")
    assert told.database is db


async def test_a_collection_is_created_once(db):
    notes = await db.create_collection("notes")
    assert await db.create_collection("_default.notes") is notes
    assert db.collection("notes") is notes
    scoped = await db.create_collection("shop.notes")
    assert (scoped.name, scoped.scope, scoped.full_name) == ("notes", "shop", "shop.notes")
    assert db.collections() == [db.default_collection, notes, scoped]


async def test_collections_created_at_the_same_time_are_one(db, nursery):
    made = []

    async def create():
        made.append(await db.create_collection("notes"))

    for _ in range(3):
        nursery.start_soon(create)
    await wait_all_tasks_blocked()
    assert made == [db.collection("notes")] * 3


@pytest.mark.parametrize("name", ["absent", "", "_x", "a b", None])
async def test_an_unknown_collection_is_not_found(db, name):
    with pytest.raises(CollectionNotFoundError):
        db.collection(name)


@pytest.mark.parametrize("name", ["", "_x", "a b", "shop._default", "x" * 252, None])
async def test_what_is_no_name_cannot_be_created(db, name):
    with pytest.raises(ConfigurationError):
        await db.create_collection(name)


# --- Documents ---


async def test_a_document_is_read_as_it_was_put(notes):
    put = await notes.put("a", {"text": "é", "list": [1, 2.5, None], "map": {"yes": True}})
    got = notes.get("a")
    assert got == put
    assert got.body == {"text": "é", "list": [1, 2.5, None], "map": {"yes": True}}
    assert got["text"] == "é"
    assert (got.id, got.sequence, got.deleted, got.collection) == ("a", 1, False, notes)
    assert (notes.count, notes.last_sequence) == (1, 1)


async def test_the_last_write_wins_unless_told_otherwise(notes):
    first = await notes.put("a", {"v": 1})
    second = await notes.put("a", {"v": 2}, expected=ANY)
    assert notes.get("a").body == {"v": 2}
    assert second.vector.compare(first.vector) is Order.NEWER
    assert (notes.count, notes.last_sequence) == (1, 2)


async def test_a_document_that_must_not_exist_is_created_only_once(notes):
    await notes.put("a", {"v": 1}, expected=None)
    with pytest.raises(ConflictError) as caught:
        await notes.put("a", {"v": 2}, expected=None)
    assert caught.value.expected is None
    assert caught.value.current == notes.get("a")
    await notes.delete("a")
    await notes.put("a", {"v": 3}, expected=None)
    assert notes.get("a").body == {"v": 3}


@pytest.mark.parametrize("by", ["document", "version"])
async def test_an_edit_may_expect_a_document_or_its_version(notes, by):
    first = await notes.put("a", {"v": 1})
    expected = first if by == "document" else first.version
    second = await notes.put("a", {"v": 2}, expected=expected)
    with pytest.raises(ConflictError) as caught:
        await notes.put("a", {"v": 3}, expected=expected)
    assert caught.value.expected is expected
    assert caught.value.current == second
    assert caught.value.current.body == {"v": 2}
    with pytest.raises(ConflictError):
        await notes.delete("a", expected=expected)
    assert notes.get("a") == second
    await notes.delete("a", expected=second)


async def test_a_deleted_document_is_told_only_when_asked_for(notes):
    await notes.put("a", {"v": 1})
    tombstone = await notes.delete("a")
    assert tombstone.deleted
    assert tombstone.body == {}
    assert notes.get("a") is None
    assert notes.get("a", deleted=True) == tombstone
    assert (notes.count, notes.last_sequence) == (0, 2)


async def test_nothing_live_cannot_be_deleted(notes):
    with pytest.raises(DocumentNotFoundError):
        await notes.delete("a")
    await notes.put("a", {})
    await notes.delete("a")
    with pytest.raises(DocumentNotFoundError):
        await notes.delete("a")


async def test_a_document_put_over_its_tombstone_continues_its_vector(notes, engine, revision):
    tombstone = revision(1, deleted=True)
    await engine.write(lambda txn: documents.put_revision(txn, notes.number, "a", tombstone))
    again = await notes.put("a", {})
    assert list(again.vector)[1:] == [tombstone.version]


async def test_a_document_of_a_tree_revision_has_the_version_that_stands_for_it(notes, engine):
    tree = TreeRevisionID(1, b"\x01" * 20)
    old = Revision.from_tree((tree,), b"\xa0", deleted=False)
    await engine.write(lambda txn: documents.put_revision(txn, notes.number, "a", old))
    [change] = [change async for change in notes.changes(live=False)]
    assert change.version == notes.get("a").version == tree.as_version()
    assert change.version.source == TREE_SOURCE
    edited = await notes.put("a", {}, expected=notes.get("a"))
    assert edited.version.source == engine.source


@pytest.mark.parametrize("document_id", ["", "_x", "a\n", "x" * 241, "\ud800", 5, None])
async def test_what_is_no_document_id_is_refused(notes, document_id):
    with pytest.raises(InvalidDocumentError):
        notes.get(document_id)
    with pytest.raises(InvalidDocumentError):
        await notes.put(document_id, {})
    with pytest.raises(InvalidDocumentError):
        await notes.delete(document_id)


@pytest.mark.parametrize(
    "body", [None, [], "x", {"a": b"x"}, {"a": math.nan}, {"_id": 1}, {1: 2}, {"a": 2**63}]
)
async def test_what_is_no_body_is_refused_and_nothing_is_written(notes, body):
    with pytest.raises(InvalidDocumentError):
        await notes.put("a", body)
    assert (notes.get("a"), notes.last_sequence) == (None, 0)


async def test_a_body_that_names_a_missing_blob_is_refused_and_nothing_is_written(notes):
    with pytest.raises(BlobNotFoundError):
        await notes.put("a", {"photo": {"@type": "blob", "digest": "sha1-x"}})
    assert notes.last_sequence == 0


async def test_versions_made_here_increase_also_within_one_reading_of_the_clock(notes):
    versions = [(await notes.put("a", {})).version for _ in range(5)]
    assert versions == sorted(set(versions))


# --- Update ---


async def test_an_update_edits_what_is_there(notes):
    await notes.put("a", {"v": 1})
    updated = await notes.update("a", lambda body: {"v": body["v"] + 1})
    assert notes.get("a") == updated
    assert updated.body == {"v": 2}


async def test_an_update_creates_and_deletes(notes):
    seen = []

    def create(body):
        seen.append(body)
        return {"v": 1}

    await notes.update("a", create)
    assert (await notes.update("a", lambda body: None)).deleted
    await notes.update("a", create)
    assert seen == [None, None]
    with pytest.raises(DocumentNotFoundError):
        await notes.update("b", lambda body: None)


async def test_updates_at_the_same_time_all_count(notes):
    await notes.put("a", {"v": 0})
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(notes.update, "a", lambda body: {"v": body["v"] + 1})
    assert notes.get("a").body == {"v": 10}


async def test_an_update_that_raises_writes_nothing(notes):
    def failing(body):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await notes.update("a", failing)
    assert notes.last_sequence == 0


# --- Batches ---


async def test_a_batch_is_one_commit(db, notes):
    await notes.put("old", {})
    before = db.statistics().commits
    async with notes.batch() as batch:
        for number in range(100):
            batch.put(f"d{number}", {"n": number})
        batch.put("d5", {"n": "again"})
        batch.delete("old")
        assert notes.count == 1
    assert db.statistics().commits == before + 1
    assert notes.count == 100
    assert notes.get("d5").body == {"n": "again"}
    assert notes.get("old") is None


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (lambda batch: batch.delete("absent"), DocumentNotFoundError),
        (lambda batch: batch.put("old", {}, expected=None), ConflictError),
    ],
)
async def test_a_batch_with_an_edit_that_fails_writes_nothing(notes, break_it, error):
    old = await notes.put("old", {})

    async def write():
        async with notes.batch() as batch:
            batch.put("a", {})
            break_it(batch)
            batch.put("b", {})

    with pytest.raises(error) as caught:
        await write()
    if error is ConflictError:
        assert caught.value.current == old
    assert (notes.count, notes.last_sequence) == (1, 1)


async def test_a_batch_checks_at_the_call(notes):
    async with notes.batch() as batch:
        with pytest.raises(InvalidDocumentError):
            batch.put("a", {"x": b""})
        with pytest.raises(InvalidDocumentError):
            batch.delete("_a")
        batch.put("b", {})
    assert await identifiers(notes.documents()) == ["b"]


async def test_a_batch_whose_block_raises_writes_nothing(notes):
    opened = []

    async def fail():
        async with notes.batch() as batch:
            opened.append(batch)
            batch.put("a", {})
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    assert notes.last_sequence == 0
    with pytest.raises(StoreError, match="ended"):
        opened[0].put("a", {})


async def test_a_batch_takes_nothing_after_its_end(notes):
    async with notes.batch() as batch:
        batch.put("a", {})
    with pytest.raises(StoreError, match="ended"):
        batch.put("b", {})
    with pytest.raises(StoreError, match="ended"):
        batch.delete("a")
    assert await identifiers(notes.documents()) == ["a"]


async def test_an_empty_batch_changes_nothing(notes):
    async with notes.batch():
        pass
    assert notes.last_sequence == 0


# --- Scans ---


async def test_documents_come_in_order_of_their_ids(notes, monkeypatch):
    monkeypatch.setattr(limits, "SCAN_SLICE_ROWS", 3)
    async with notes.batch() as batch:
        for number in reversed(range(20)):
            batch.put(f"d{number:02}", {"n": number})
        batch.delete("d07")
    everything = [f"d{number:02}" for number in range(20)]
    live = [document_id for document_id in everything if document_id != "d07"]
    assert await identifiers(notes.documents()) == live
    assert await identifiers(notes.documents(include_deleted=True)) == everything
    assert await identifiers(notes.documents(prefix="d1")) == everything[10:]
    assert await identifiers(notes.documents(start="d03", end="d06")) == everything[3:6]
    scanned = [document async for document in notes.documents(end="d02")]
    assert scanned == [notes.get("d00"), notes.get("d01")]


async def test_an_empty_collection_has_no_documents(notes):
    assert await identifiers(notes.documents()) == []


async def test_documents_may_be_edited_during_a_scan(notes):
    async with notes.batch() as batch:
        for number in range(500):
            batch.put(f"d{number:03}", {})
    seen = []
    async for document in notes.documents():
        seen.append(document.id)
        await notes.delete(document.id)
    assert len(seen) == 500
    assert notes.count == 0


async def test_a_long_scan_lets_other_tasks_run(notes):
    async with notes.batch() as batch:
        for number in range(5 * limits.SCAN_SLICE_ROWS):
            batch.put(f"d{number:04}", {})
    turns = []

    async def other():
        while True:
            await trio.lowlevel.checkpoint()
            turns.append(True)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(other)
            await identifiers(notes.documents())
            scope.cancel()
    assert len(turns) >= 3


# --- Changes ---


async def test_changes_come_in_order_each_document_once(notes):
    await notes.put("a", {})
    await notes.put("b", {})
    await notes.delete("a")
    assert await changed(notes) == [(2, "b", False), (3, "a", True)]
    assert await changed(notes, since=2) == [(3, "a", True)]
    assert await changed(notes, since=3) == []
    assert await changed(notes, since=-5) == await changed(notes)
    [change, _] = [change async for change in notes.changes(live=False)]
    assert change.version == notes.get("b").version


async def test_a_live_feed_follows_what_is_written(notes, nursery):
    seen = []

    async def follow(since):
        feed = notes.changes(since)
        while True:
            seen.append((since, (await anext(feed)).sequence))

    for since in (0, 0, 2):
        nursery.start_soon(follow, since)
    await wait_all_tasks_blocked()
    for number in range(4):
        await notes.put(f"d{number}", {})
        await wait_all_tasks_blocked()
    expected = [(0, sequence) for sequence in (1, 1, 2, 2, 3, 3, 4, 4)] + [(2, 3), (2, 4)]
    assert sorted(seen) == expected


async def test_a_slow_consumer_misses_nothing(notes):
    feed = notes.changes()
    await notes.put("first", {})
    assert (await anext(feed)).document_id == "first"
    async with notes.batch() as batch:
        for number in range(3 * limits.SCAN_SLICE_ROWS):
            batch.put(f"d{number}", {})
    await notes.put("d0", {})
    seen = [(await anext(feed)) for _ in range(3 * limits.SCAN_SLICE_ROWS)]
    sequences = [change.sequence for change in seen]
    assert sequences == sorted(set(sequences))
    assert sequences[-1] == notes.last_sequence
    assert len({change.document_id for change in seen}) == 3 * limits.SCAN_SLICE_ROWS


@pytest.mark.parametrize("since", [-5, 2**70])
async def test_a_live_feed_waits_wherever_it_starts(notes, since, autojump_clock):
    with trio.move_on_after(1) as scope:
        await anext(notes.changes(since))
    assert scope.cancelled_caught


async def test_a_live_feed_whose_last_document_was_purged_reads_no_more(
    notes, nursery, monkeypatch
):
    seen, reads = [], []
    read_since = changes.read_since

    def read(*args):
        reads.append(args)
        return read_since(*args)

    async def follow():
        feed = notes.changes()
        while True:
            seen.append((await anext(feed)).document_id)

    await notes.put("a", {})
    await notes.put("b", {})
    await notes.purge("b")
    monkeypatch.setattr(changes, "read_since", read)
    nursery.start_soon(follow)
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    assert seen == ["a"]
    assert len(reads) <= 2
    await notes.put("c", {})
    await wait_all_tasks_blocked()
    assert seen == ["a", "c"]


async def test_a_feed_goes_on_after_it_was_cancelled(notes, autojump_clock):
    feed = notes.changes()
    with trio.move_on_after(1) as scope:
        await anext(feed)
    assert scope.cancelled_caught
    await notes.put("a", {})
    assert (await anext(feed)).document_id == "a"


async def test_a_feed_may_be_left_at_any_time(notes):
    await notes.put("a", {})
    await notes.put("b", {})
    async for _change in notes.changes():
        break
    async for _document in notes.documents():
        break


async def test_a_feed_does_not_see_other_collections(db, notes):
    other = await db.create_collection("other")
    await other.put("a", {})
    await notes.put("b", {})
    assert await changed(notes) == [(1, "b", False)]


async def test_closing_ends_a_live_feed(path, nursery):
    async def follow(collection):
        with pytest.raises(StoreClosedError):
            async for _change in collection.changes():
                pass

    async with open_test_database(path) as db:
        nursery.start_soon(follow, db.default_collection)
        await wait_all_tasks_blocked()


# --- Conflicts that wait --------------------------------------------------------------------------


async def test_conflicts_come_in_order_of_documents_and_versions(db, notes, revision):
    assert [conflict async for conflict in notes.conflicts()] == []
    for name in ("b", "a", "c"):
        await notes.put(name, {"ours": name})
    await notes.delete("b")

    def add(txn):
        for name, after, source in (("b", 5, b"x"), ("a", 7, b"x"), ("a", 6, b"y")):
            theirs = revision(after, source=source * 16)
            txn.clock.see(theirs.version.time)
            conflicts.add(txn, notes.number, name, theirs)

    await db.engine.write(add)
    found = [conflict async for conflict in notes.conflicts()]
    assert [conflict.document_id for conflict in found] == ["a", "a", "b"]
    assert [conflict.remote.version.source[:1] for conflict in found] == [b"y", b"x", b"x"]
    assert found[0].local == notes.get("a")
    assert found[2].local is None
    assert all(conflict.base is None for conflict in found)


async def test_conflicts_that_are_decided_meanwhile_are_left_out(db, notes, revision):
    for name in ("a", "b"):
        await notes.put(name, {})
        for one in (revision(5), revision(6, source=SourceID(b"b" * 16))):
            await db.engine.write(
                lambda txn, name=name, one=one: conflicts.add(txn, notes.number, name, one)
            )
    iterator = notes.conflicts()
    assert (await anext(iterator)).document_id == "a"
    await notes.purge("a")
    assert (await anext(iterator)).document_id == "b"
    await notes.purge("b")
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)
