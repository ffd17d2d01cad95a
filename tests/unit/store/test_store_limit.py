"""The size limit: soft, with a reserve for what makes room."""

from __future__ import annotations

from contextlib import suppress

import pytest

from trio_p2p.errors import StoreFullError
from trio_p2p.model.version import Version
from trio_p2p.store import checkpoints, conflicts, documents, remotes
from trio_p2p.testing.databases import open_test_database

NOW = 1_800_000_000 * 10**9
LIMIT = 2**20
TEXT = "x" * 2_000


async def fill(collection):
    """Put documents until the limit is reached; returns their IDs."""
    names = []
    with suppress(StoreFullError):
        while True:
            await collection.put(f"d{len(names):04}", {"text": TEXT})
            names.append(f"d{len(names):04}")
    return names


async def ids_of(collection):
    return [document.id async for document in collection.documents()]


@pytest.fixture
async def db(path):
    async with open_test_database(path, map_size_max=LIMIT, clock=lambda: NOW) as db:
        yield db


async def test_at_the_limit_everything_committed_is_there(db, notes):
    names = await fill(notes)
    assert len(names) > 200
    assert await ids_of(notes) == names
    assert notes.count == notes.last_sequence == len(names)
    with pytest.raises(StoreFullError) as caught:
        await notes.put("more", {"text": TEXT})
    assert caught.value.facts["bytes_max"] == LIMIT
    assert LIMIT * 0.95 < db.statistics().bytes_used <= LIMIT


async def test_everything_is_there_after_the_next_opening(path):
    async with open_test_database(path, map_size_max=LIMIT) as db:
        names = await fill(db.default_collection)
    async with open_test_database(path, map_size_max=LIMIT) as db:
        assert await ids_of(db.default_collection) == names
        with pytest.raises(StoreFullError):
            await db.default_collection.put("more", {"text": TEXT})


async def test_raising_the_limit_at_the_next_opening_lets_writing_go_on(path):
    async with open_test_database(path, map_size_max=LIMIT) as db:
        await fill(db.default_collection)
    async with open_test_database(path, map_size_max=2 * LIMIT) as db:
        await db.default_collection.put("more", {"text": TEXT})


async def test_a_limit_below_what_there_is_leaves_it_readable_and_deletable(path):
    async with open_test_database(path) as db:
        async with db.default_collection.batch() as batch:
            for number in range(2_000):
                batch.put(f"d{number:04}", {"text": TEXT})
    async with open_test_database(path, map_size_max=LIMIT) as db:
        notes = db.default_collection
        assert notes.count == 2_000
        with pytest.raises(StoreFullError):
            await notes.put("more", {"text": TEXT})
        for number in range(1_900):
            await notes.purge(f"d{number:04}")
        await notes.put("more", {"text": TEXT})


@pytest.mark.parametrize("way", ["delete", "purge"])
async def test_making_room_works_at_the_limit_and_lets_writing_go_on(notes, way):
    names = await fill(notes)
    for name in names[:50]:
        await getattr(notes, way)(name)
    assert notes.count == len(names) - 50
    for number in range(30):
        await notes.put(f"new{number}", {"text": TEXT})


async def test_everything_can_be_deleted_and_purged_at_the_limit(notes):
    names = await fill(notes)
    async with notes.batch() as batch:
        for name in names:
            batch.delete(name)
    for name in names:
        await notes.purge(name)
    assert len(await fill(notes)) >= len(names) - 1


async def test_a_document_may_be_replaced_by_a_smaller_one_at_the_limit(notes):
    names = await fill(notes)
    for name in names:
        await notes.put(name, {"text": "short"})
    await notes.put("new", {"text": TEXT})


async def test_checkpoints_and_what_peers_have_can_be_kept_at_the_limit(db, notes):
    await fill(notes)

    def job(txn):
        remote = remotes.number(txn, "peer")
        remotes.set_peer_at(txn, "ws://a/b", "peer")
        for number in range(200):
            name = f"d{number:04}"
            remotes.set_known(txn, remote, notes.number, name, Version(1, b"x" * 16))
            checkpoints.set_local(txn, f"cp-{number}", b"{}" * 20)
            checkpoints.set_peer(txn, f"client {number}", "", b"{}" * 20)

    before = db.statistics().bytes_used
    await db.engine.write(job)
    assert db.statistics().bytes_used > max(before, LIMIT)
    with pytest.raises(StoreFullError):
        await notes.put("more", {"text": TEXT})


async def test_a_batch_beyond_the_limit_writes_nothing(notes):
    names = await fill(notes)

    async def write():
        async with notes.batch() as batch:
            for number in range(50):
                batch.put(f"new{number}", {"text": TEXT})

    with pytest.raises(StoreFullError):
        await write()
    assert await ids_of(notes) == names


async def test_one_document_beyond_the_whole_map_fails_alone(notes):
    with pytest.raises(StoreFullError):
        await notes.put("large", {"text": "x" * 10 * LIMIT})
    await notes.put("small", {})


async def test_arrivals_and_their_conflicts_are_limited_too(db, notes, revision):
    await fill(notes)
    large = revision(1, body=bytes(200_000))
    for job in (
        lambda txn: documents.put_revision(txn, notes.number, "new", large),
        lambda txn: conflicts.add(txn, notes.number, "new", large),
    ):
        with pytest.raises(StoreFullError):
            await db.engine.write(job)


async def test_a_collection_is_not_made_beyond_the_limit(db, notes):
    await fill(notes)
    made = 0
    with suppress(StoreFullError):
        while True:
            await db.create_collection(f"c{made}")
            made += 1
    assert len(db.collections()) == 1 + made


async def test_a_deleted_collection_makes_room(db, notes):
    other = await db.create_collection("other")
    await fill(other)
    await db.delete_collection("other")
    await db.compact()
    assert len(await fill(notes)) > 200
