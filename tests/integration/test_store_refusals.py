"""What the operating system refuses, for real: files of other users, disks that are full, and
directories that another process has, or had until it was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import limited_writer
import pytest

from trio_p2p.errors import DatabaseBusyError
from trio_p2p.store.database import open_database
from trio_p2p.store.directory import LOCK_FILE
from trio_p2p.store.environment import DATA_FILE
from trio_p2p.testing.forking import ForkServer


@pytest.fixture(scope="module")
def server():
    with ForkServer() as server:
        yield server


@pytest.fixture
def path():
    """In a directory that others may look into, unlike pytest's."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory / "shop.p2p"
    for entry in directory.rglob("*"):
        if entry.is_dir():
            entry.chmod(0o700)
    shutil.rmtree(directory)


def run(server, function, *args):
    """All that a child told, and how it ended."""
    child = server.start(function, *args)
    with child.pipe:
        told = [json.loads(line) for line in child.pipe.read().splitlines()]
    return told, child.wait()


async def make(path):
    async with open_database(path) as db:
        await db.default_collection.put("a", {})


# --- Who has the directory ---


async def test_a_killed_process_keeps_no_lock(server, path):
    child = server.start(limited_writer.hold, str(path))
    with child.pipe:
        assert json.loads(child.pipe.readline()) == ["open"]
        with pytest.raises(DatabaseBusyError, match="already open") as caught:
            async with open_database(path):
                pass
        assert caught.value.facts["path"] == str(path)
        assert child.kill() == -signal.SIGKILL
    async with open_database(path) as db:
        await db.default_collection.put("a", {})


# --- Files of another user ---

CASES = {
    "a directory that may not be written to": lambda path: path.chmod(0o555),
    "a directory that may not be entered": lambda path: path.chmod(0),
    "a lock file that may not be written to": lambda path: (path / LOCK_FILE).chmod(0o444),
    "a lock file that may not be read": lambda path: (path / LOCK_FILE).chmod(0),
    "a data file that may not be written to": lambda path: (path / DATA_FILE).chmod(0o444),
    "a data file that may not be read": lambda path: (path / DATA_FILE).chmod(0),
}


def give_away(path):
    """To the user that the child becomes; a developer's own user has them already."""
    if os.geteuid() == 0:
        for entry in (path, *path.rglob("*")):
            os.chown(entry, limited_writer.NOBODY, limited_writer.NOBODY)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("case", CASES)
async def test_what_may_not_be_used_is_told_with_what_to_do(server, path, case, create):
    await make(path)
    (path / "lock.mdb").unlink()
    give_away(path)
    CASES[case](path)
    [[kind, message, told_path]], status = run(
        server, limited_writer.open_as_nobody, str(path), create
    )
    assert status == 0
    assert (kind, told_path) == ("StoreError", str(path)), message
    assert "make sure that it may be written to" in message
    assert "ermission denied" in message


async def test_what_belongs_to_the_user_opens(server, path):
    await make(path)
    give_away(path)
    told, status = run(server, limited_writer.open_as_nobody, str(path), False)
    assert (told, status) == ([["opened", ["a"]]], 0)


async def test_a_database_cannot_be_made_where_nothing_may_be(server, path):
    path.parent.chmod(0o555)
    [[kind, message, told_path]], _ = run(server, limited_writer.open_as_nobody, str(path), True)
    assert (kind, told_path) == ("StoreError", str(path))
    assert "make sure that it may be written to" in message


# --- Full disks ---


def ways():
    """Limiting the size of files works for everybody; a file system of one's own does not."""
    with ForkServer() as server:
        [[allowed]], _ = run(server, limited_writer.may_mount)
    found = [limited_writer.fill_limited_file]
    return [*found, limited_writer.fill_small_file_system] if allowed else found


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("way", ways())
def test_a_full_disk_refuses_what_does_not_fit_and_keeps_the_rest(server, path, way, durable):
    told, status = run(server, way, str(path), durable)
    assert status == 0, told
    [what, acknowledged, refused], *errors, room, found = told
    assert what == "full"
    assert len(acknowledged) > 10
    # The sizes were tried in turn.
    assert len(refused) == 3
    assert all("disk is full" in message for message in refused.values())
    assert [kind for kind, *_ in errors] == ["StoreFullError"] * len(errors)
    assert errors
    assert room[0] == "room"
    assert found == ["found", room[1]]
