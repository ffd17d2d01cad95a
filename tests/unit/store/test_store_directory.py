"""Who has a directory, and what is known of how its last use ended."""

from __future__ import annotations

import os
import shutil

import pytest

from trio_p2p import limits
from trio_p2p.errors import DatabaseBusyError, StoreCorruptError
from trio_p2p.store import directory as directory_module
from trio_p2p.store import environment as environment_module
from trio_p2p.store import files
from trio_p2p.store.database import open_database
from trio_p2p.store.directory import LOCK_FILE, DirectoryLock
from trio_p2p.store.environment import DATA_FILE
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.integrity import check_store

OTHER_BOOT = b"another".ljust(36)


@pytest.fixture
def synced(monkeypatch):
    """The paths of what is synced."""
    synced, real = [], os.fsync

    def note(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return synced


def find(path):
    """What the next one to take the lock learns."""
    lock = DirectoryLock(path, sync=True)
    found = lock.was_closed, lock.is_suspect
    lock.release()
    return found


def leave(path, *, closed):
    lock = DirectoryLock(path, sync=True)
    lock.note_use()
    if closed:
        lock.note_closed()
    lock.release()


def damage(path):
    """Write zeros over the page that LMDB would look at first."""
    raw = bytearray((path / DATA_FILE).read_bytes())
    raw[-4096:] = bytes(4096)
    (path / DATA_FILE).write_bytes(raw)


def test_a_lock_is_had_by_one_until_it_is_released(path):
    lock = DirectoryLock(path, sync=True)
    with pytest.raises(DatabaseBusyError):
        DirectoryLock(path, sync=True)
    lock.release()
    assert find(path) == (False, True)


@pytest.mark.parametrize("closed", [True, False])
def test_the_next_one_learns_whether_the_database_was_closed(path, closed):
    leave(path, closed=closed)
    assert find(path) == (closed, False)
    leave(path, closed=not closed)
    assert find(path) == (not closed, False)


def test_a_database_that_was_open_when_the_machine_went_down_is_suspect(path, monkeypatch):
    leave(path, closed=False)
    monkeypatch.setattr(directory_module, "boot_id", lambda: OTHER_BOOT)
    assert find(path) == (False, True)
    leave(path, closed=True)
    assert find(path) == (True, False)


def test_without_a_boot_id_whatever_was_not_closed_is_suspect(path, monkeypatch):
    monkeypatch.setattr(directory_module, "boot_id", lambda: b"".ljust(36))
    leave(path, closed=False)
    assert find(path) == (False, True)


@pytest.mark.parametrize("content", [b"", b"close", b"closed by hand", bytes(6), b"x" * 1000])
def test_a_file_that_tells_nothing_is_suspect(path, content):
    path.mkdir()
    (path / LOCK_FILE).write_bytes(content)
    assert find(path) == (False, True)


def test_that_all_was_well_is_gone_from_the_disk_before_anything_is_written(path, synced):
    leave(path, closed=True)
    synced.clear()
    lock = DirectoryLock(path, sync=True)
    lock.note_use()
    assert synced == [str(path / LOCK_FILE)]
    lock.release()
    # What was not closed needs no such thing.
    lock = DirectoryLock(path, sync=True)
    lock.note_use()
    assert synced == [str(path / LOCK_FILE)]
    lock.release()


def test_a_full_disk_leaves_the_database_suspect(path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    leave(path, closed=True)
    monkeypatch.setattr(os, "pwrite", fail)
    leave(path, closed=True)
    assert find(path) == (False, True)


async def test_a_new_database_and_the_directories_made_for_it_are_on_the_disk(tmp_path, synced):
    path = tmp_path / "deep" / "down"
    async with open_database(path):
        assert {str(path), str(path.parent), str(tmp_path)} <= set(synced)
        # LMDB syncs the data file itself, without our knowing.
        assert str(path / DATA_FILE) not in synced


async def test_what_a_dead_process_had_yet_to_sync_is_synced_before_it_is_read(path, synced):
    """Or a power cut could take what was read, told to peers and built upon."""
    async with open_database(path) as db:
        await db.default_collection.put("a", {})
        db.engine.abort()
    synced.clear()
    read = []
    original = environment_module.lmdb.open

    def opened(*args, **kwargs):
        read.append(list(synced))
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_module.lmdb, "open", opened)
        async with open_database(path):
            pass
    assert {str(path / DATA_FILE), str(path)} <= set(read[0])
    synced.clear()
    async with open_database(path):
        pass
    assert synced == [str(path / LOCK_FILE)]


async def test_a_failure_to_sync_is_told_and_leaves_the_directory_free(path, monkeypatch):
    async with open_database(path) as db:
        db.engine.abort()

    def fail(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_file", fail)
        with pytest.raises(Exception, match=str(path)):
            async with open_database(path):
                pass
    async with open_database(path):
        pass


async def test_pages_are_checked_once_after_the_machine_went_down(path, monkeypatch):
    checked = []
    async with open_database(path) as db:
        await db.default_collection.put("a", {})
        db.engine.abort()
    monkeypatch.setattr(environment_module, "check_pages", checked.append)
    async with open_database(path) as db:
        db.engine.abort()
    assert checked == []
    monkeypatch.setattr(directory_module, "boot_id", lambda: OTHER_BOOT)
    async with open_database(path) as db:
        db.engine.abort()
    assert checked == [path / DATA_FILE]
    async with open_database(path):
        pass
    async with open_database(path):
        pass
    assert checked == [path / DATA_FILE]


@pytest.mark.parametrize("origin", ["power cut", "copy"])
async def test_damage_is_told_before_lmdb_meets_it(path, monkeypatch, origin):
    async with open_database(path) as db:
        await db.default_collection.put("a", {})
        db.engine.abort()
    if origin == "copy":
        (path / LOCK_FILE).unlink()
    else:
        monkeypatch.setattr(directory_module, "boot_id", lambda: OTHER_BOOT)
    shutil.copytree(path, path.with_name("whole"))
    damage(path)
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match="restore a backup") as caught:
            async with open_database(path):
                pass
        assert caught.value.facts["path"] == str(path)
    async with open_database(path.with_name("whole")) as db:
        check_store(db.engine)


async def test_a_file_too_large_to_be_checked_in_time_is_not(path, monkeypatch, caplog):
    async with open_test_database(path):
        pass
    (path / LOCK_FILE).write_bytes(b"")
    monkeypatch.setattr(limits, "CHECKED_FILE_BYTES_MAX", 1)
    async with open_test_database(path):
        pass
    assert "too large to be checked" in caplog.text
