"""Backups: consistent, whole or not there, and with an identity of their own."""

from __future__ import annotations

import errno
import gc
import os
import threading

import lmdb
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p.errors import DatabaseExistsError, StoreClosedError, StoreError
from trio_p2p.store import backup as backup_module
from trio_p2p.store import checkpoints, remotes
from trio_p2p.store.database import open_database
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.integrity import check_store


@pytest.fixture
def target(tmp_path):
    return tmp_path / "copies" / "copy.p2p"


async def bodies(collection):
    return {document.id: document.body async for document in collection.documents()}


async def test_a_backup_holds_what_was_there_and_goes_its_own_way(db, notes, target):
    other = await db.create_collection("shop.other")
    await notes.put("a", {"n": 1})
    await other.put("b", {"n": 2})
    await db.backup(target)
    await notes.put("a", {"n": 3})
    async with open_test_database(target, create=False) as copy:
        assert await bodies(copy.default_collection) == {"a": {"n": 1}}
        assert await bodies(copy.collection("shop.other")) == {"b": {"n": 2}}
        assert copy.default_collection.last_sequence == 1
        await copy.default_collection.put("c", {})
    assert await bodies(notes) == {"a": {"n": 3}}


@pytest.mark.behaviour("P8")
async def test_a_backup_takes_an_identity_of_its_own_once(db, target):
    def remember(txn):
        remotes.number(txn, "peer")
        checkpoints.set_local(txn, "cp-1", b"{}")
        checkpoints.set_peer(txn, "client", "", b"{}")

    await db.engine.write(remember)
    await db.backup(target)
    async with open_test_database(target) as copy:
        first = (copy.id, copy.source_id)
        assert copy.id != db.id
        assert copy.source_id != db.source_id
        with copy.engine.read() as txn:
            assert remotes.find(txn, "peer") is None
            assert checkpoints.local(txn, "cp-1") is None
            assert checkpoints.peer(txn, "client") is None
    async with open_test_database(target) as copy:
        assert (copy.id, copy.source_id) == first


async def test_a_database_restored_from_a_backup_twice_is_two(db, target, tmp_path):
    await db.backup(target)
    await db.backup(tmp_path / "second")
    async with open_test_database(target) as one, open_test_database(tmp_path / "second") as two:
        assert len({db.id, one.id, two.id}) == 3


@pytest.mark.parametrize("make", ["file", "directory", "link"])
async def test_what_stands_at_the_target_is_left_alone(db, target, make):
    target.parent.mkdir()
    match make:
        case "file":
            target.write_bytes(b"mine")
        case "directory":
            target.mkdir()
        case "link":
            target.symlink_to("nowhere")
    with pytest.raises(DatabaseExistsError) as caught:
        await db.backup(target)
    assert caught.value.facts["path"] == str(target)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert not target.is_dir() or not list(target.iterdir())


@pytest.mark.parametrize(
    "failing", ["copyfd", "fsync", "rename"], ids=["copying", "syncing", "renaming"]
)
async def test_a_backup_that_fails_leaves_nothing(db, notes, target, monkeypatch, failing):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    await notes.put("a", {})
    with monkeypatch.context() as patch:
        if failing == "copyfd":
            patch.setattr(backup_module, "_copy", fail)
        elif failing == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr("pathlib.Path.rename", fail)
        with pytest.raises(StoreError, match="No space left") as caught:
            await db.backup(target)
    assert caught.value.facts["path"] == str(target)
    assert list(target.parent.iterdir()) == []
    await db.backup(target)


async def test_an_error_of_lmdb_comes_out_as_ours(db, target, monkeypatch):
    def fail(*args):
        raise lmdb.DiskError("input/output error")

    monkeypatch.setattr(backup_module, "_copy", fail)
    with pytest.raises(StoreError, match="input/output"):
        await db.backup(target)
    assert list(target.parent.iterdir()) == []


async def test_a_parent_that_is_a_file_is_a_typed_error(db, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="backup failed"):
        await db.backup(tmp_path / "file" / "copy")


async def test_writers_go_on_during_a_backup_and_the_copy_is_of_one_moment(
    path, target, monkeypatch
):
    begun, go_on = threading.Event(), threading.Event()
    real = backup_module._copy

    def copy(environment, directory):
        begun.set()
        go_on.wait()
        real(environment, directory)

    monkeypatch.setattr(backup_module, "_copy", copy)
    async with open_database(path) as db, trio.open_nursery() as nursery:
        notes = db.default_collection
        nursery.start_soon(db.backup, target)
        await trio.to_thread.run_sync(begun.wait)
        for number in range(20):
            async with notes.batch() as batch:
                batch.put("a", {"n": number})
                batch.put("b", {"n": number})
            if number == 10:
                go_on.set()
    async with open_test_database(target) as copied:
        found = await bodies(copied.default_collection)
    assert found["a"] == found["b"]
    assert found["a"]["n"] >= 10


async def test_closing_waits_for_a_backup(path, target, monkeypatch, nursery):
    begun, go_on = threading.Event(), threading.Event()
    real = backup_module._copy

    def copy(environment, directory):
        begun.set()
        go_on.wait()
        real(environment, directory)

    monkeypatch.setattr(backup_module, "_copy", copy)
    async with open_database(path) as db:
        await db.default_collection.put("a", {})
        nursery.start_soon(db.backup, target)
        await trio.to_thread.run_sync(begun.wait)
        nursery.start_soon(trio.to_thread.run_sync, go_on.set)
    async with open_test_database(target) as copied:
        assert copied.default_collection.get("a") is not None


async def test_a_closed_database_is_not_backed_up(path, target):
    async with open_test_database(path) as db:
        pass
    with pytest.raises(StoreClosedError):
        await db.backup(target)
    assert not target.parent.exists()


async def test_renewing_takes_a_new_identity_at_once(path):
    async with open_test_database(path) as db:
        before = (db.id, db.source_id)
        old = await db.default_collection.put("a", {})
        await db.renew_identity()
        after = (db.id, db.source_id)
        assert not set(before) & set(after)
        new = await db.default_collection.put("b", {})
        assert old.version.source != new.version.source == db.engine.source
    async with open_test_database(path) as db:
        assert (db.id, db.source_id) == after
        assert db.default_collection.count == 2


async def test_renewing_forgets_peers_but_gives_their_numbers_to_no_other(db):
    def remember(key):
        def job(txn):
            checkpoints.set_local(txn, "cp-1", b"{}")
            checkpoints.set_peer(txn, "client" + key, "", b"{}")
            remotes.set_peer_at(txn, "ws://a/b", key)
            return remotes.number(txn, key)

        return job

    before = await db.engine.write(remember("one"))
    await db.renew_identity()
    with db.engine.read() as txn:
        assert remotes.find(txn, "one") is None
        assert remotes.peer_at(txn, "ws://a/b") is None
        assert checkpoints.local(txn, "cp-1") is None
        assert checkpoints.peer(txn, "clientone") is None
    assert await db.engine.write(remember("two")) != before


async def test_renewing_lets_go_of_the_blobs_of_what_peers_had(db, notes):
    document = await notes.put("a", {"photo": await db.save_blob(b"picture")})
    revision_id = document.revision.id

    def job(txn):
        remote = remotes.number(txn, "peer")
        remotes.set_known(txn, remote, notes.number, "a", revision_id)

    await db.engine.write(job)
    await notes.put("a", {"photo": None})
    del document
    gc.collect()
    assert (await db.compact()).blobs_removed == 0
    await db.renew_identity()
    check_store(db.engine)
    assert (await db.compact()).blobs_removed == 1


async def test_jobs_after_a_renewal_in_one_commit_write_as_the_new_author(db, nursery):
    written = []

    async def write(name):
        written.append(await db.default_collection.put(name, {}))

    nursery.start_soon(write, "first")
    nursery.start_soon(db.renew_identity)
    await wait_all_tasks_blocked()
    await write("last")
    assert written[-1].version.source == db.engine.source


async def test_compacting_frees_what_deleted_collections_held(db):
    notes = await db.create_collection("notes")
    async with notes.batch() as batch:
        for number in range(500):
            batch.put(f"d{number}", {"text": "x" * 500})
    await db.delete_collection("notes")
    result = await db.compact()
    assert result.bytes_freed > 200_000
    assert (await db.compact()).bytes_freed == 0


async def test_statistics_tell_what_there_is(db, notes, revision):
    empty = db.statistics()
    assert (empty.documents, empty.conflicts, empty.expirations) == (0, 0, 0)
    other = await db.create_collection("other")
    await notes.put("a", {"text": "x" * 100_000})
    await other.put("b", {})
    await other.delete("b")
    full = db.statistics()
    assert (full.collections, full.documents) == (2, 1)
    assert full.bytes_used - empty.bytes_used > 100_000
    assert full.file_bytes >= full.bytes_used
    assert full.bytes_max > full.file_bytes
    assert full.commits - empty.commits == full.writes - empty.writes == 4
    await notes.purge("a")
    assert db.statistics().bytes_used < full.bytes_used - 100_000
