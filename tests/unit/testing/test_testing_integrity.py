"""The check of a store finds what does not agree: for each table, one thing made wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest

from trio_p2p.ids import SourceID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.store import checkpoints, conflicts, keys, records, remotes, schema
from trio_p2p.store.records import CollectionState
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.integrity import check_store

NOW = 1_800_000_000 * 10**9
BOB = SourceID(b"b" * 16)
OTHER = Version(NOW - 5, BOB)


@pytest.fixture
async def db(tmp_path):
    """Some of everything."""
    async with open_test_database(tmp_path / "db", clock=lambda: NOW) as db:
        notes = db.default_collection
        for name in ("a", "b", "c"):
            await notes.put(name, {"name": name})
        await notes.delete("b")
        await notes.purge("c")
        await notes.put("photo", {"photo": await db.save_blob(b"picture")})
        await notes.put("d", {})
        await notes.set_expiration("a", datetime(2100, 1, 1, tzinfo=UTC))
        await db.create_collection("other")
        await db.delete_collection("other")
        await db.create_collection("third")

        def job(txn):
            conflicts.add(txn, 1, "a", Revision(VersionVector(OTHER), b"\xa0"))
            remotes.set_known(txn, remotes.number(txn, "peer"), 1, "a", OTHER)
            reached = txn.collection(1).last_sequence
            checkpoints.set_peer(txn, "client", "", b"{}", collection=1, reached=reached)

        await db.engine.write(job)
        await notes.put("d", {"again": True})
        yield db


async def test_what_the_store_writes_agrees(db):
    check_store(db.engine)


def change(table, key, value):
    """Write or for None remove a row; a function makes it for the key."""

    def job(txn):
        handle = getattr(txn.tables, table)
        if value is None:
            assert txn.raw.delete(key, b"", handle)
        else:
            txn.raw.put(key, value(key) if callable(value) else value, db=handle)

    return job


DOCUMENT = keys.document(1, "a")
BLOB = keys.document(1, "photo")
REVISION = Revision(VersionVector(OTHER), b"\xa0")
DELETED = Revision(VersionVector(OTHER), b"\xa1aa\x01", deleted=True)
EARLY, LATE = keys.number(1), keys.number(2**62)
WRONG = {
    "a document that no change tells of": change(
        "documents", keys.document(1, "new"), partial(records.pack_revision, REVISION, 9)
    ),
    "a change of no document": change("documents", DOCUMENT, None),
    "a change of another sequence": change(
        "documents", DOCUMENT, partial(records.pack_revision, REVISION, 1)
    ),
    "a document without its change": change("changes", keys.change(1, 1), None),
    "a change twice": change(
        "changes", keys.change(1, 2), partial(records.pack_change, REVISION, b"a")
    ),
    "a tombstone with a body": change(
        "documents", DOCUMENT, partial(records.pack_revision, DELETED, 1)
    ),
    "a collection that counts wrong": change(
        "collections",
        keys.collection(1),
        partial(records.pack_collection, CollectionState("_default", 5, 7)),
    ),
    "a collection that is not published": change(
        "collections",
        keys.collection(9),
        partial(records.pack_collection, CollectionState("ninth")),
    ),
    "a collection that is there and dropped": change("dropped", keys.collection(1), b""),
    "a document of no collection": change(
        "documents", keys.document(9, "a"), partial(records.pack_revision, REVISION, 1)
    ),
    "a clock behind": change("meta", schema.META_CLOCK, EARLY),
    "a counter of collections behind": change("meta", schema.META_LAST_COLLECTION, EARLY),
    "a counter of peers behind": change("meta", schema.META_LAST_REMOTE, keys.number(0)),
    "an expiration without its time": change("expirations", BLOB, LATE),
    "an expiration of another time": change("expirations", DOCUMENT, LATE),
    "a time without its expiration": change("expirations", DOCUMENT, None),
    "a conflict of no document": change(
        "conflicts", keys.revision(1, "c", OTHER), partial(records.pack_revision, REVISION, 0)
    ),
    "a conflict under another version": change(
        "conflicts",
        keys.revision(1, "a", Version(5, BOB)),
        partial(records.pack_revision, REVISION, 0),
    ),
    "a blob without its row": change(
        "documents",
        DOCUMENT,
        partial(
            records.pack_revision,
            Revision(VersionVector(OTHER), b"\xa1aa\x78\x21sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk="),
            1,
        ),
    ),
    "what an unknown peer has": change(
        "known_revisions", keys.known_revision(1, "a", 7), records.pack_revision_id(OTHER)
    ),
    "a peer that is known and forgotten": change("forgotten", keys.number(1), b""),
    "a checkpoint without its use": change("uses", keys.use(checkpoints.PEERS.sign, 1), None),
    "a checkpoint without its mark": change("marks", keys.mark(1, 6, 1), None),
    "a mark without its checkpoint": change("marks", keys.mark(1, 5, 1), b""),
    "a base that the document does not include": change(
        "bases",
        keys.base(keys.of_document(1, "a"), OTHER.to_bytes(), 0),
        partial(records.pack_revision, REVISION, 0),
    ),
    "a base of no document": change(
        "bases",
        keys.base(keys.of_document(1, "c"), OTHER.to_bytes(), 0),
        partial(records.pack_revision, REVISION, 0),
    ),
    "a base whose end is not told": change("base_ends", keys.change(1, 7), None),
    "an end of no base": change("base_ends", keys.change(1, 3), b"a"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_does_not_agree_is_found(db, name):
    await db.engine.write(WRONG[name])
    with pytest.raises((AssertionError, KeyError)):
        check_store(db.engine)


@pytest.mark.parametrize("content", [None, b"another"])
async def test_a_blob_that_is_missing_or_another_is_found(db, content):
    [file] = (db.path / "blobs").iterdir()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises((AssertionError, OSError)):
        check_store(db.engine)
