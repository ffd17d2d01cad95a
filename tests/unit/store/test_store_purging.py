"""Purging: documents forgotten here, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from trio_p2p.errors import ConflictError, InvalidDocumentError
from trio_p2p.model.version import Version
from trio_p2p.store import changes, checkpoints, conflicts, expirations, remotes
from trio_p2p.testing.databases import open_test_database

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def feed(collection, since=0):
    with collection.read() as txn:
        rows = changes.read_since(txn, collection.number, since, 100).rows
    return [(row.sequence, row.document_id) for row in rows]


def entries(engine):
    """How many records each table has that is about documents."""
    tables = (
        "documents",
        "changes",
        "conflicts",
        "known_revisions",
        "merges",
        "bases",
        "base_ends",
    )
    tables += ("expirations", "expiring")
    with engine.read() as txn:
        return {name: txn.raw.stat(getattr(txn.tables, name))["entries"] for name in tables}


async def test_a_purged_document_is_gone_and_leaves_no_change(notes):
    await notes.put("a", {"n": 1})
    await notes.put("b", {"n": 2})
    assert await notes.purge("a")
    assert notes.get("a", deleted=True) is None
    assert feed(notes) == [(2, "b")]
    assert notes.count == 1


async def test_purging_tells_whether_there_was_anything(notes):
    await notes.put("a", {})
    assert await notes.purge("a")
    assert not await notes.purge("a")
    assert not await notes.purge("never")


async def test_a_tombstone_can_be_purged_and_was_not_counted(notes):
    await notes.put("a", {})
    await notes.put("b", {})
    await notes.delete("a")
    assert await notes.purge("a")
    assert notes.get("a", deleted=True) is None
    assert notes.count == 1


async def test_the_sequence_of_a_purged_document_is_not_given_again(path):
    async with open_test_database(path) as db:
        notes = db.default_collection
        await notes.put("a", {})
        await notes.purge("a")
        assert notes.last_sequence == 1
    async with open_test_database(path) as db:
        notes = db.default_collection
        assert notes.last_sequence == 1
        assert (await notes.put("b", {})).sequence == 2


async def test_everything_about_the_document_is_forgotten_and_nothing_else(engine, notes, revision):
    def job(txn):
        known = Version(1, b"x" * 16)
        for number in (remotes.number(txn, "one"), remotes.number(txn, "two")):
            for name in ("a", "a\U0010ffff", "b"):
                remotes.set_known(txn, number, notes.number, name, known)
        reached = txn.collection(notes.number).last_sequence
        checkpoints.set_peer(txn, "me", "", b"{}", collection=notes.number, reached=reached)
        for name in ("a", "b"):
            conflicts.set_merges(txn, notes.number, name, 1)
            conflicts.add(txn, notes.number, name, revision(1))
            conflicts.add(txn, notes.number, name, revision(2, source=b"c" * 16))

    for name in ("a", "a\U0010ffff", "b"):
        await notes.put(name, {})
        await notes.set_expiration(name, LATER)
    await engine.write(job)
    for name in ("a", "b"):
        await notes.put(name, {})
    before = entries(engine)
    await notes.purge("a")
    removed = {name: before[name] - left for name, left in entries(engine).items()}
    assert removed == {
        "documents": 1,
        "changes": 1,
        "conflicts": 2,
        "known_revisions": 2,
        "merges": 1,
        "bases": 1,
        "base_ends": 1,
        "expirations": 1,
        "expiring": 1,
    }
    with engine.read() as txn:
        assert len(conflicts.of_document(txn, notes.number, "b")) == 2
        assert expirations.get(txn, notes.number, "b") is not None


async def test_a_purged_document_can_be_made_anew(notes):
    old = await notes.put("a", {"n": 1})
    await notes.purge("a")
    with pytest.raises(ConflictError) as caught:
        await notes.put("a", {"n": 2}, expected=old)
    assert caught.value.current is None
    new = await notes.put("a", {"n": 2}, expected=None)
    assert list(new.vector) == [new.version]
    assert feed(notes) == [(2, "a")]


async def test_a_batch_purges_in_its_order(notes):
    await notes.put("a", {"n": 1})
    async with notes.batch() as batch:
        batch.put("b", {})
        batch.purge("a")
        batch.purge("b")
        batch.purge("never")
        batch.put("a", {"n": 2})
    assert notes.get("b") is None
    assert notes.get("a").body == {"n": 2}
    assert notes.count == 1


async def test_a_batch_that_fails_purges_nothing(notes):
    await notes.put("a", {})

    async def write():
        async with notes.batch() as batch:
            batch.purge("a")
            batch.put("b", {}, expected=Version(1, b"x" * 16))

    with pytest.raises(ConflictError):
        await write()
    assert notes.get("a") is not None
    assert notes.count == 1


async def test_what_is_no_document_id_is_refused(notes):
    with pytest.raises(InvalidDocumentError):
        await notes.purge("")
    async with notes.batch() as batch:
        with pytest.raises(InvalidDocumentError):
            batch.purge("_a")
