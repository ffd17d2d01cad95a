"""Commits that do not wait for the disk: what survives a dead process, and what a power cut."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import StoreCorruptError
from trio_p2p.store import boot, deferred
from trio_p2p.store.database import Database, open_database
from trio_p2p.store.deferred import HELD_FILE
from trio_p2p.store.engine import open_engine
from trio_p2p.store.environment import DATA_FILE, open_environment
from trio_p2p.testing.databases import run_in_place

PAGE = os.sysconf("SC_PAGE_SIZE")
OTHER_BOOT = b"another".ljust(36)

sizes = st.sampled_from([0, 10, 1500, 6000])
writes = st.lists(st.tuples(st.integers(0, 40), sizes | st.none()), min_size=1, max_size=30)
steps = st.lists(writes | st.sampled_from(["capture", "hold"]), max_size=25)


@contextmanager
def opened(path, *, durable=False):
    environment = open_environment(path, create=True, size_max=2**26, sync=True, durable=durable)
    try:
        yield environment
    finally:
        environment.abandon()


def content(environment):
    with environment.env.begin() as txn:
        return dict(txn.cursor(environment.tables.documents))


def write(environment, edits):
    with environment.env.begin(write=True) as txn:
        for key, size in edits:
            name = b"%d" % key
            if size is None:
                txn.delete(name, db=environment.tables.documents)
            else:
                txn.put(name, os.urandom(size), db=environment.tables.documents)


class Disk:
    """What may be on the disk: of each page any state it had since the data file was synced."""

    def __init__(self, path):
        self._path = path
        self._images = [self._read(DATA_FILE)]
        self._held = self._read(HELD_FILE)

    def note_write(self):
        self._images.append(self._read(DATA_FILE))

    def note_hold(self):
        del self._images[:-1]
        self._held = self._read(HELD_FILE)

    def cut(self, target, random):
        """The directory as it may be found after the power came back."""
        target.mkdir()
        (target / HELD_FILE).write_bytes(self._held)
        length = max(map(len, self._images))
        with (target / DATA_FILE).open("wb") as file:
            for at in range(0, length, PAGE):
                file.write(random.choice(self._images)[at : at + PAGE].ljust(PAGE, b"\0"))

    def _read(self, name):
        return (self._path / name).read_bytes()


def run_until_cut(path, steps, target, seed):
    """Do the steps, cut the power; returns what must be there and who the database was."""
    with opened(path) as environment:
        disk = Disk(path)
        held, captured = content(environment), None
        for step in steps:
            if step == "capture":
                captured = environment.holder.capture(), content(environment)
            elif step == "hold":
                if captured is not None:
                    environment.holder.hold(captured[0])
                    held, captured = captured[1], None
                    disk.note_hold()
            else:
                write(environment, step)
                disk.note_write()
        disk.cut(target, Random(seed))
        return held, environment.identity


@given(steps, st.integers())
def test_a_power_cut_leaves_the_state_that_was_held(steps, seed):
    with tempfile.TemporaryDirectory() as directory:
        path, target = Path(directory) / "path", Path(directory) / "target"
        held, identity = run_until_cut(path, steps, target, seed)
        with mock.patch.object(deferred, "boot_id", return_value=OTHER_BOOT):
            with opened(target) as environment:
                assert content(environment) == held
                assert environment.identity.id != identity.id
                assert environment.identity.source != identity.source
                write(environment, [(key, 3000) for key in range(100, 120)])
            with opened(target, durable=True) as environment:
                after = content(environment)
                assert {k: v for k, v in after.items() if int(k) < 100} == held
                assert len(after) == len(held) + 20


@given(steps, st.integers(), st.integers())
def test_a_second_power_cut_while_recovering_does_no_harm(steps, seed, second_seed):
    with tempfile.TemporaryDirectory() as directory:
        path, target = Path(directory) / "path", Path(directory) / "target"
        again = Path(directory) / "again"
        held, identity = run_until_cut(path, steps, target, seed)
        with (
            mock.patch.object(deferred, "boot_id", return_value=OTHER_BOOT),
            opened(target) as found,
        ):
            disk = Disk(target)
            write(found, [(1, 6000)])
            disk.note_write()
            disk.cut(again, Random(second_seed))
        with opened(again, durable=True) as environment:
            assert content(environment) == held
            assert environment.identity.id != identity.id


def test_an_interrupted_recovery_is_done_again(tmp_path, monkeypatch):
    path, target = tmp_path / "path", tmp_path / "target"
    held, identity = run_until_cut(path, [[(1, 10)], "capture", "hold", [(2, 10)]], target, 0)

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(deferred, "boot_id", lambda: OTHER_BOOT)
    for name in ("remove_file", "write_file"):
        with monkeypatch.context() as patch:
            patch.setattr(deferred.files, name, fail)
            with pytest.raises(OSError, match="Input/output"):
                deferred.recover(target / DATA_FILE)
    with opened(target, durable=True) as environment:
        assert content(environment) == held
        assert environment.identity.id != identity.id


def test_a_dead_process_loses_nothing(tmp_path):
    with opened(tmp_path) as environment:
        write(environment, [(1, 10), (2, 6000)])
        expected, identity = content(environment), environment.identity
    assert (tmp_path / HELD_FILE).exists()
    with opened(tmp_path, durable=True) as environment:
        assert not (tmp_path / HELD_FILE).exists()
        assert content(environment) == expected
        assert environment.identity == identity


def test_a_clean_close_leaves_a_whole_file_and_the_identity(tmp_path, monkeypatch):
    environment = open_environment(tmp_path, create=True, size_max=2**26, sync=True, durable=False)
    write(environment, [(1, 10)])
    expected, identity = content(environment), environment.identity
    environment.close()
    assert not (tmp_path / HELD_FILE).exists()
    monkeypatch.setattr(deferred, "boot_id", lambda: OTHER_BOOT)
    with opened(tmp_path) as environment:
        assert content(environment) == expected
        assert environment.identity == identity


def test_without_a_boot_id_a_dead_process_counts_as_a_power_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "_BOOT_ID", tmp_path / "missing")
    with opened(tmp_path) as environment:
        write(environment, [(1, 10)])
        identity = environment.identity
    with opened(tmp_path) as environment:
        assert content(environment) == {}
        assert environment.identity != identity


def test_the_system_tells_its_boot_id():
    assert len(deferred.boot_id().strip()) == 36
    assert deferred.boot_id() == deferred.boot_id()


def test_a_damaged_file_beside_is_told(tmp_path):
    with opened(tmp_path):
        pass
    held = tmp_path / HELD_FILE
    held.write_bytes(held.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreCorruptError) as caught, opened(tmp_path):
        pass
    assert caught.value.facts["path"] == str(tmp_path)


def copy_cut(path, target):
    """As after a power cut that took no page."""
    target.mkdir()
    for name in (DATA_FILE, HELD_FILE):
        shutil.copy(path / name, target / name)


async def test_what_is_synced_survives_a_power_cut(path, tmp_path, monkeypatch):
    async with open_database(path, durable=False) as db:
        await db.default_collection.put("a", {})
        await db.engine.sync()
        await db.default_collection.put("b", {})
        copy_cut(path, tmp_path / "cut")
        identity = db.id
    monkeypatch.setattr(deferred, "boot_id", lambda: OTHER_BOOT)
    async with open_database(tmp_path / "cut") as db:
        assert [document.id async for document in db.default_collection.documents()] == ["a"]
        assert db.id != identity


async def test_a_database_is_synced_a_second_after_a_write(
    path, tmp_path, monkeypatch, autojump_clock
):
    opening = open_engine(path, clock=lambda: 2 * 10**18, run_sync=run_in_place, durable=False)
    async with opening as engine:
        await Database(engine).default_collection.put("a", {})
        before = (path / HELD_FILE).read_bytes()
        await trio.sleep(0.9)
        assert (path / HELD_FILE).read_bytes() == before
        await trio.sleep(0.2)
        synced = (path / HELD_FILE).read_bytes()
        assert synced != before
        inode = (path / HELD_FILE).stat().st_ino
        await trio.sleep(100)
        assert (path / HELD_FILE).stat().st_ino == inode
    assert not (path / HELD_FILE).exists()


async def test_crash_and_reopen_keep_every_write(path):
    async with open_database(path, durable=False) as db:
        for number in range(20):
            await db.default_collection.put(f"d{number}", {})
        identity = db.id
        db.engine.abort()
    async with open_database(path, durable=False) as db:
        assert db.default_collection.count == 20
        assert db.id == identity
    async with open_database(path) as db:
        assert db.default_collection.count == 20
        assert db.id == identity


async def test_pages_that_are_held_give_way_to_what_needs_their_room(path, monkeypatch):
    monkeypatch.setattr(limits, "MAP_RESERVE_BYTES_MIN", 2**21)
    async with open_database(path, durable=False, map_size_max=2**20) as db:
        for number in range(40):
            await db.default_collection.put("a", {"text": str(number) * 400_000})
            await db.default_collection.delete("a")


async def test_syncing_a_durable_database_is_nothing(path):
    async with open_database(path) as db:
        await db.engine.sync()
        assert sorted(file.name for file in path.iterdir()) == [DATA_FILE, "lock", "lock.mdb"]
