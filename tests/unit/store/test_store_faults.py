"""A disk that fails or is full under an open database: what users learn, and what remains."""

from __future__ import annotations

import errno
import os

import lmdb
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p.errors import StoreClosedError, StoreError, StoreFailedError, StoreFullError
from trio_p2p.store import deferred, files
from trio_p2p.store.database import Database, open_database
from trio_p2p.store.deferred import HELD_FILE
from trio_p2p.store.engine import open_engine
from trio_p2p.testing.databases import open_test_database, run_in_place
from trio_p2p.testing.faults import Fault, failing
from trio_p2p.testing.integrity import check_store

OTHER_BOOT = b"another".ljust(36)
BROKEN = [Fault.PAGES_REFUSED, Fault.SYNC_FAILS, Fault.META_REFUSED, Fault.META_FULL]


def identifiers(db):
    with db.engine.read() as txn:
        return {bytes(key[4:]).decode() for key, _ in txn.raw.cursor(txn.tables.documents)}


def readers(engine):
    """How many snapshots are open."""
    _, *lines = engine._environment.env.readers().splitlines()
    return sum(not line.endswith("-") for line in lines)


def refuse(*args, **kwargs):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def outcomes(notes, names):
    """What comes of putting documents at once."""
    found = {}

    async def put(name):
        try:
            await notes.put(name, {})
        except StoreError as exc:
            found[name] = exc
        else:
            found[name] = None

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(put, name)
    return found


# --- Commits ---


async def test_a_full_disk_refuses_writes_until_there_is_room(path):
    async with open_database(path) as db:
        notes = db.default_collection
        kept = await notes.put("a", {})
        with failing(path, Fault.DISK_FULL):
            with pytest.raises(StoreFullError, match="disk is full"):
                await notes.put("b", {})
            found = await outcomes(notes, "cde")
            assert {type(error) for error in found.values()} == {StoreFullError}
            assert (notes.count, notes.last_sequence) == (1, kept.sequence)
            assert notes.get("a") == kept
        after = await notes.put("b", {})
        assert after.sequence == kept.sequence + 1
        assert after.version > kept.version
    async with open_database(path) as db:
        check_store(db.engine)
        assert identifiers(db) == {"a", "b"}


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_disk_that_fails_closes_the_database_and_says_so(path, fault, caplog):
    async with open_database(path) as db:
        notes = db.default_collection
        kept = await notes.put("a", {})
        feed = notes.changes(kept.sequence)
        with failing(path, fault):
            with pytest.raises(StoreFailedError, match="open it again") as caught:
                await notes.put("b", {})
            assert caught.value.facts["path"] == str(path)
            assert isinstance(caught.value.__cause__, lmdb.Error)
            # Nothing of what failed is seen.
            assert (notes.count, notes.last_sequence) == (1, kept.sequence)
        # Nor does it help that the disk is well again: what LMDB has in memory may not be on it.
        for use in (
            lambda: notes.put("c", {}),
            lambda: notes.update("a", lambda body: body),
            lambda: anext(feed),
            lambda: anext(notes.documents()),
            lambda: db.compact(),
            lambda: db.backup(path.with_name("backup")),
            lambda: db.save_blob(b"x"),
        ):
            with pytest.raises(StoreFailedError, match="open it again"):
                await use()
        with pytest.raises(StoreFailedError, match="open it again"):
            notes.get("a")
        with pytest.raises(StoreFailedError, match="open it again"):
            db.statistics()
        assert db.engine.closed
    assert str(path) in caplog.text
    async with open_database(path) as db:
        check_store(db.engine)
        assert identifiers(db) - {"b"} == {"a"}
        assert db.default_collection.get("a") == kept
        assert (await db.default_collection.put("d", {})).version > kept.version


@pytest.mark.parametrize("fault", BROKEN)
async def test_writes_that_share_a_commit_all_learn_that_the_disk_failed(path, fault):
    async with open_database(path) as db:
        await db.default_collection.put("a", {})
        with failing(path, fault):
            found = await outcomes(db.default_collection, [f"d{number}" for number in range(50)])
        assert {type(error) for error in found.values()} == {StoreFailedError}
        # Each has an error of its own, whose traceback is its own.
        assert len({id(error) for error in found.values()}) == 50
        assert db.statistics is not None
    async with open_database(path) as db:
        check_store(db.engine)
        assert identifiers(db) in ({"a"}, {"a", *found})


async def test_a_disk_that_fails_is_tried_once_however_many_wait(path, monkeypatch):
    """Each try may take as long as the system gives a disk to answer."""
    async with open_database(path) as db:
        synced = []
        with failing(path, Fault.SYNC_FAILS):
            commit = db.engine._committer._transact
            monkeypatch.setattr(
                db.engine._committer, "_transact", lambda batch: (synced.append(1), commit(batch))
            )
            await outcomes(db.default_collection, [f"d{number}" for number in range(50)])
        assert len(synced) == 1


async def test_a_full_disk_does_not_keep_what_was_committed_from_being_synced(path, autojump_clock):
    """Of the writes that failed the clock went on, but that is no reason to write anything."""
    opening = open_engine(path, clock=lambda: 2 * 10**18, run_sync=run_in_place, durable=False)
    async with opening as engine:
        notes = Database(engine).default_collection
        await notes.put("a", {})
        with failing(path, Fault.DISK_FULL), pytest.raises(StoreFullError):
            await notes.put("b", {})
        commits = engine.statistics().commits
        await engine.sync()
        assert engine.statistics().commits == commits


async def test_who_waits_learns_that_the_disk_failed(path, nursery):
    found = []

    async def follow(notes):
        try:
            async for _change in notes.changes():
                pass
        except StoreClosedError as exc:
            found.append(exc)

    async with open_database(path) as db:
        nursery.start_soon(follow, db.default_collection)
        await wait_all_tasks_blocked()
        with failing(path, Fault.PAGES_REFUSED), pytest.raises(StoreFailedError):
            await db.default_collection.put("a", {})
        await wait_all_tasks_blocked()
        assert [type(error) for error in found] == [StoreFailedError]


async def test_what_the_body_raises_leaves_also_after_the_disk_failed(path):
    async def fail():
        async with open_database(path) as db:
            with failing(path, Fault.PAGES_REFUSED):
                await db.default_collection.put("a", {})

    async def fail_later():
        async with open_database(path) as db:
            with failing(path, Fault.PAGES_REFUSED), pytest.raises(StoreFailedError):
                await db.default_collection.put("a", {})
            raise ValueError("mine")

    with pytest.raises(StoreFailedError):
        await fail()
    with pytest.raises(ValueError, match="mine"):
        await fail_later()


async def test_a_database_can_be_closed_while_its_disk_fails(path):
    async with open_database(path) as db:
        await db.default_collection.put("a", {})
        fault = failing(path, Fault.PAGES_REFUSED)
        fault.__enter__()
    fault.__exit__(None, None, None)
    async with open_database(path) as db:
        assert identifiers(db) == {"a"}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("fault", [Fault.PAGES_REFUSED, Fault.DISK_FULL])
async def test_the_same_holds_where_commits_do_not_wait_for_the_disk(path, fault, durable):
    kind = StoreFullError if fault is Fault.DISK_FULL else StoreFailedError
    opening = open_engine(
        path, clock=lambda: 2 * 10**18, run_sync=run_in_place, durable=durable, sync=False
    )
    async with opening as engine:
        notes = Database(engine).default_collection
        await notes.put("a", {})
        with failing(path, fault), pytest.raises(kind):
            await notes.put("b", {})
    async with open_test_database(path) as db:
        check_store(db.engine)
        assert identifiers(db) == {"a"}


# --- Files beside LMDB's ---


async def test_a_held_file_that_cannot_be_written_is_tried_again(path, monkeypatch, autojump_clock):
    """The state before stays held, and a power cut leaves that one or the newer one."""
    opening = open_engine(path, clock=lambda: 2 * 10**18, run_sync=run_in_place, durable=False)
    async with opening as engine:
        notes = Database(engine).default_collection
        before = (path / HELD_FILE).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(deferred.files, "write_file", refuse)
            await notes.put("a", {})
            await trio.sleep(10)
            with pytest.raises(StoreError, match="could not be kept"):
                await engine.sync()
            await notes.put("b", {})
        assert (path / HELD_FILE).read_bytes() == before
        await trio.sleep(10)
        assert (path / HELD_FILE).read_bytes() != before
        assert readers(engine) == 1
    async with open_test_database(path) as db:
        assert identifiers(db) == {"a", "b"}


async def test_a_held_file_of_which_nobody_knows_leaves_either_state(
    path, tmp_path, monkeypatch, autojump_clock
):
    """It got its name, but that may not be on the disk: both states it may tell of stay whole."""
    opening = open_engine(path, clock=lambda: 2 * 10**18, run_sync=run_in_place, durable=False)
    async with opening as engine:
        notes = Database(engine).default_collection
        await notes.put("a", {"text": "a" * 5000})
        await engine.sync()
        old = (path / HELD_FILE).read_bytes()
        await notes.put("a", {"text": "b" * 5000})
        with monkeypatch.context() as patch:
            patch.setattr(deferred.files, "sync_directory", refuse)
            for _ in range(5):
                with pytest.raises(StoreError, match="could not be kept"):
                    await engine.sync()
                await notes.put("a", {"text": "c" * 5000})
                await notes.put("b", {"text": "d" * 5000})
        new = (path / HELD_FILE).read_bytes()
        for name, held in (("old", old), ("new", new)):
            (tmp_path / name).mkdir()
            for file in ("data.mdb", "lock"):
                (tmp_path / name / file).write_bytes((path / file).read_bytes())
            (tmp_path / name / HELD_FILE).write_bytes(held)
    monkeypatch.setattr(deferred, "boot_id", lambda: OTHER_BOOT)
    for name in ("old", "new"):
        async with open_test_database(tmp_path / name) as db:
            check_store(db.engine)
            expected = "a" if name == "old" else "b"
            assert db.default_collection.get("a").body == {"text": expected * 5000}


async def test_a_failed_sync_closes_the_database_and_what_is_held_counts(path, autojump_clock):
    """What the system could not write it may forget, so it is as after a power cut."""

    async def write():
        opening = open_engine(path, clock=lambda: 2 * 10**18, run_sync=run_in_place, durable=False)
        async with opening as engine:
            db = Database(engine)
            identities.append(db.id)
            await db.default_collection.put("held", {})
            await engine.sync()
            await db.default_collection.put("lost", {})
            with failing(path, Fault.SYNC_FAILS):
                await trio.sleep(2)
            with pytest.raises(StoreFailedError, match="last second"):
                db.default_collection.get("held")
            with pytest.raises(StoreFailedError, match="last second"):
                await db.default_collection.put("more", {})

    identities = []
    # Whoever wrote last may not have noticed: it is told on leaving.
    with pytest.raises(StoreFailedError, match="last second"):
        await write()
    async with open_test_database(path) as db:
        check_store(db.engine)
        assert identifiers(db) == {"held"}
        assert db.id not in identities


async def test_a_sync_that_fails_at_closing_is_told_and_what_is_held_counts(path):
    async def write():
        async with open_database(path, durable=False) as db:
            await db.default_collection.put("held", {})
            await db.engine.sync()
            await db.default_collection.put("lost", {})
            fault = failing(path, Fault.SYNC_FAILS)
            fault.__enter__()

    with pytest.raises(StoreFailedError, match="last second"):
        await write()
    async with open_test_database(path) as db:
        check_store(db.engine)
        assert identifiers(db) == {"held"}


async def test_a_held_file_that_cannot_be_removed_is_told_at_closing(path, monkeypatch):
    async def write():
        async with open_database(path, durable=False) as db:
            await db.default_collection.put("a", {})
            monkeypatch.setattr(deferred.files, "remove_file", refuse)

    with pytest.raises(StoreError, match="could not be kept"):
        await write()
    monkeypatch.undo()
    async with open_database(path) as db:
        assert identifiers(db) == {"a"}
        assert not (path / HELD_FILE).exists()


async def test_what_the_body_raises_comes_before_what_closing_does(path, monkeypatch):
    async def fail():
        async with open_database(path, durable=False) as db:
            await db.default_collection.put("a", {})
            monkeypatch.setattr(deferred.files, "remove_file", refuse)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()


async def test_a_data_file_that_cannot_be_opened_for_its_meta_pages_is_told(
    path, monkeypatch, autojump_clock
):
    opening = open_engine(path, clock=lambda: 2 * 10**18, run_sync=run_in_place, durable=False)
    async with opening as engine:
        data_file = engine._environment.holder._data_file
        monkeypatch.setattr(engine._environment.holder, "_data_file", path / "absent")
        with pytest.raises(StoreError, match="could not be kept"):
            await engine.sync()
        monkeypatch.setattr(engine._environment.holder, "_data_file", data_file)
        await engine.sync()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_blob_that_cannot_be_saved_is_a_typed_error(path, monkeypatch, code):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    kind = StoreFullError if code == errno.ENOSPC else StoreError
    async with open_database(path) as db:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(kind) as caught:
                await db.save_blob(b"picture")
            assert type(caught.value) is kind
        blob = await db.save_blob(b"picture")
        await db.default_collection.put("a", {"photo": blob})
        check_store(db.engine)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("failing_call", ["fsync", "rename", "sync_directory"])
async def test_a_backup_that_fails_is_a_typed_error_and_leaves_nothing(
    path, monkeypatch, code, failing_call
):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    kind = StoreFullError if code == errno.ENOSPC else StoreError
    target = path.with_name("backup")
    async with open_database(path) as db:
        await db.default_collection.put("a", {})
        with monkeypatch.context() as patch:
            owner = {"fsync": os, "rename": type(path), "sync_directory": files}[failing_call]
            patch.setattr(owner, failing_call, fail)
            with pytest.raises(kind) as caught:
                await db.backup(target)
            assert type(caught.value) is kind
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        await db.backup(target)
    async with open_test_database(target) as db:
        check_store(db.engine)
        assert identifiers(db) == {"a"}


async def test_a_directory_that_vanished_is_a_typed_error(path):
    async with open_database(path) as db:
        path.rename(path.with_name("elsewhere"))
        with pytest.raises(StoreError):
            await db.save_blob(b"picture")
        with pytest.raises(StoreError):
            db.statistics()
        await db.default_collection.put("a", {})
    async with open_database(path.with_name("elsewhere")) as db:
        assert identifiers(db) == {"a"}
