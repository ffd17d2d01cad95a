"""Deleting collections, and what is left of them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import CollectionNotFoundError, ConfigurationError, StoreClosedError
from trio_p2p.model.version import Version
from trio_p2p.store import checkpoints, conflicts, documents, janitor, remotes
from trio_p2p.testing.databases import open_test_database

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def rows(engine, number):
    """How many records are left of a collection."""
    prefix = number.to_bytes(4, "big")
    tables = ("documents", "changes", "conflicts", "bases", "base_ends", "marks", "passed")
    tables += ("known_revisions", "merges", "expirations", "dropped", "collections")
    places = dict.fromkeys(tables, 0) | {"expiring": 8}
    with engine.read() as txn:
        return sum(
            key[at : at + 4] == prefix
            for table, at in places.items()
            for key, _ in txn.raw.cursor(getattr(txn.tables, table))
        )


async def fill(db, collection, revision):
    """Something in every table; returns how many records."""
    before = rows(db.engine, collection.number)
    async with collection.batch() as batch:
        for number in range(20):
            batch.put(f"d{number}", {})
        for number in range(5):
            batch.delete(f"d{number}")
    for number in range(10, 14):
        await collection.set_expiration(f"d{number}", LATER)

    def job(txn):
        for peer in ("one", "two"):
            for name in ("d1", "d2", "d3"):
                known = Version(1, b"x" * 16)
                remote = remotes.number(txn, peer)
                remotes.set_known(txn, remote, collection.number, name, known)
        for name in ("d14", "d15"):
            version = documents.head(txn, collection.number, name).revision.version
            remotes.set_known(txn, remote, collection.number, name, version)
        conflicts.add(txn, collection.number, "d1", revision(1))
        conflicts.set_merges(txn, collection.number, "d1", 1)
        for name in ("d14", "d15", "d16"):
            documents.edit(txn, collection.number, name, b"\xa0")

    await db.engine.write(job)
    return rows(db.engine, collection.number) - before


async def test_a_deleted_collection_is_gone_at_once(db):
    notes = await db.create_collection("shop.notes")
    await notes.put("a", {})
    await db.delete_collection("shop.notes")
    assert [collection.full_name for collection in db.collections()] == ["_default"]
    with pytest.raises(CollectionNotFoundError):
        db.collection("shop.notes")
    with pytest.raises(CollectionNotFoundError):
        await db.delete_collection("shop.notes")


async def test_using_a_deleted_collection_says_so(db):
    notes = await db.create_collection("notes")
    document = await notes.put("a", {})
    changes, documents = notes.changes(), notes.documents()
    await db.delete_collection("notes")
    for read in (
        lambda: notes.get("a"),
        lambda: notes.count,
        lambda: notes.last_sequence,
        lambda: notes.expiration("a"),
    ):
        with pytest.raises(CollectionNotFoundError):
            read()
    for write in (
        lambda: notes.put("a", {}),
        lambda: notes.put("a", {}, expected=document),
        lambda: notes.delete("a"),
        lambda: notes.purge("a"),
        lambda: notes.set_expiration("a", LATER),
        lambda: anext(changes),
        lambda: anext(documents),
    ):
        with pytest.raises(CollectionNotFoundError):
            await write()
    with pytest.raises(CollectionNotFoundError):
        async with notes.batch() as batch:
            batch.put("a", {})


async def test_who_waits_for_a_change_learns_of_the_deletion(db, nursery):
    ended = []

    async def follow(changes):
        with pytest.raises(CollectionNotFoundError):
            await anext(changes)
        ended.append(True)

    notes = await db.create_collection("notes")
    nursery.start_soon(follow, notes.changes())
    await wait_all_tasks_blocked()
    await db.delete_collection("notes")
    await wait_all_tasks_blocked()
    assert ended == [True]


async def test_everything_of_it_is_erased_and_nothing_else(db, revision, monkeypatch):
    monkeypatch.setattr(limits, "TIDY_RECORDS", 7)
    kept, notes = await db.create_collection("kept"), await db.create_collection("notes")
    last = await db.create_collection("last")
    for collection in (kept, last):
        await fill(db, collection, revision)
    left = [rows(db.engine, collection.number) for collection in (kept, last)]
    assert await fill(db, notes, revision) > 50
    await db.delete_collection("notes")
    await wait_all_tasks_blocked()
    assert rows(db.engine, notes.number) == 0
    assert [rows(db.engine, collection.number) for collection in (kept, last)] == left


async def test_what_was_kept_for_peers_that_pull_is_erased(db, monkeypatch):
    monkeypatch.setattr(limits, "TIDY_RECORDS", 2)
    notes = await db.create_collection("notes")

    def checkpoint(client, expected, reached):
        where = {"collection": notes.number, "reached": reached}
        return lambda txn: checkpoints.set_peer(txn, client, expected, b"{}", **where)

    for number in range(8):
        await notes.put(f"d{number}", {})
    await db.engine.write(checkpoint("one", "", 4))
    await db.engine.write(checkpoint("two", "", 8))
    for number in range(8):
        await notes.put(f"d{number}", {"again": True})
    with db.engine.read() as txn:
        for table in (txn.tables.marks, txn.tables.bases, txn.tables.base_ends):
            assert txn.raw.stat(table)["entries"] > 0
    await db.delete_collection("notes")
    await wait_all_tasks_blocked()
    assert rows(db.engine, notes.number) == 0


async def test_no_transaction_grows_with_the_collection(db, revision, monkeypatch):
    monkeypatch.setattr(limits, "TIDY_RECORDS", 7)
    notes = await db.create_collection("notes")
    count = await fill(db, notes, revision)
    before = db.engine.statistics().commits
    await db.delete_collection("notes")
    await wait_all_tasks_blocked()
    assert db.engine.statistics().commits - before > count // 14


async def test_erasing_goes_on_after_a_crash(path, revision, monkeypatch):
    def crash(txn, limit):
        raise StoreClosedError("crashed")

    async with open_test_database(path) as db:
        notes = await db.create_collection("notes")
        await notes.put("a", {})
        with monkeypatch.context() as patch:
            patch.setattr(janitor.catalogue, "erase", crash)
            await db.delete_collection("notes")
            await wait_all_tasks_blocked()
        db.engine.abort()
    async with open_test_database(path) as db:
        assert rows(db.engine, notes.number) > 0
        await wait_all_tasks_blocked()
        assert rows(db.engine, notes.number) == 0
        assert len(db.collections()) == 1


async def test_the_default_collection_stays(db):
    for name in ("_default", "_default._default"):
        with pytest.raises(ConfigurationError):
            await db.delete_collection(name)
    await db.default_collection.put("a", {})


async def test_a_number_is_never_given_again(path):
    async with open_test_database(path) as db:
        first = await db.create_collection("first")
        second = await db.create_collection("second")
        await db.delete_collection("second")
    async with open_test_database(path) as db:
        third = await db.create_collection("third")
        assert len({first.number, second.number, third.number}) == 3


async def test_a_collection_of_the_same_name_starts_empty_behind_the_old_sequences(db):
    old = await db.create_collection("notes")
    await old.put("a", {})
    await old.put("b", {})
    await db.delete_collection("notes")
    new = await db.create_collection("notes")
    assert new is not old
    assert db.collection("notes") is new
    assert (new.count, new.get("a")) == (0, None)
    assert (await new.put("a", {"n": 1})).sequence == 3
    with pytest.raises(CollectionNotFoundError):
        old.get("a")


async def test_checkpoints_are_forgotten_with_the_collection(db):
    def keep(txn):
        checkpoints.set_local(txn, "cp-1", b"{}")
        checkpoints.set_peer(txn, "client", "", b"{}")

    await db.engine.write(keep)
    await db.create_collection("notes")
    await db.delete_collection("notes")
    with db.engine.read() as txn:
        assert checkpoints.local(txn, "cp-1") is None
        assert checkpoints.peer(txn, "client") is None


async def test_no_checkpoint_is_kept_for_a_collection_that_was_deleted(db):
    """A peer may be saving it just then; the collection made anew is to get everything again."""
    notes = await db.create_collection("notes")
    await db.delete_collection("notes")
    await db.create_collection("notes")
    for number, reached in ((notes.number, 0), (notes.number, 5)):
        with pytest.raises(CollectionNotFoundError):
            await db.engine.write(
                lambda txn, n=number, r=reached: checkpoints.set_peer(
                    txn, "client", "", b"{}", collection=n, reached=r
                )
            )
    with db.engine.read() as txn:
        assert checkpoints.peer(txn, "client") is None


async def test_deleting_and_making_at_once_leaves_the_one_that_was_made(db):
    await db.create_collection("notes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.delete_collection, "notes")
        nursery.start_soon(db.create_collection, "notes")
    for collection in db.collections():
        await collection.put("a", {})
        assert db.engine.collection(collection.number).full_name == collection.full_name
