"""What the tests of an operating system that refuses let happen in processes of their own."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import tempfile
from pathlib import Path

import trio

from trio_p2p.errors import StoreError, StoreFullError
from trio_p2p.store.database import open_database
from trio_p2p.testing.integrity import check_store

NOBODY = 65_534


def tell(pipe, *values):
    os.write(pipe, json.dumps(values).encode() + b"\n")


def described(error):
    return [type(error).__name__, str(error), error.facts.get("path")]


def hold(path, pipe):
    """Keep the database open until killed."""

    async def main():
        async with open_database(path):
            tell(pipe, "open")
            await trio.sleep_forever()

    trio.run(main)


def open_as_nobody(path, create, pipe):
    """Open the database as a user to whom the permissions of files apply."""

    async def main(path, create):
        async with open_database(path, create=create) as db:
            return [document.id async for document in db.default_collection.documents()]

    # Imports everything first: nobody may read the interpreter's files afterwards.
    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, Path(directory) / "db", True)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        tell(pipe, "opened", trio.run(main, Path(path), create))
    except StoreError as exc:
        tell(pipe, *described(exc))


def limit_file_size(bytes_max):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, hard))


def fill(path, durable, pipe):
    """Write until no more fits, make room, write again, and close."""
    trio.run(_fill, Path(path), durable, pipe)


async def _fill(path, durable, pipe):
    ballast = path.with_name("ballast")
    if not durable:
        ballast.write_bytes(bytes(400_000))
    async with open_database(path, durable=durable) as db:
        notes = db.default_collection
        acknowledged, refused, sizes = {}, {}, [30_000, 3_000, 300]
        # The smaller ones go on for a while where the larger ones do not fit any more.
        for number in range(100_000):
            name, body = f"d{number}", {"text": "x" * sizes[len(refused)]}
            try:
                document = await notes.put(name, body)
            except StoreFullError as exc:
                refused[name] = str(exc)
                assert notes.get(name) is None
            else:
                acknowledged[name] = document.sequence
            if len(refused) == len(sizes):
                break
        check_store(db.engine)
        tell(pipe, "full", list(acknowledged), refused)
        for use in (
            lambda: db.save_blob(bytes(10_000_000)),
            lambda: db.backup(path.with_name("backup")),
        ):
            try:
                await use()
            except StoreFullError as exc:
                tell(pipe, *described(exc))
        # Where the last state that is safe must stay whole, what is purged is no room before a
        # newer one is held, and that takes some.
        ballast.unlink(missing_ok=True)
        # In several transactions: what one frees is room for those after the next.
        for start in range(3):
            await db.engine.sync()
            async with notes.batch() as batch:
                for name in list(acknowledged)[start::4]:
                    batch.purge(name)
                    del acknowledged[name]
        await db.engine.sync()
        for number in range(5):
            await notes.put(f"again{number}", {"text": "y" * 3000})
            acknowledged[f"again{number}"] = None
        check_store(db.engine)
        tell(pipe, "room", sorted(acknowledged))


def mount_in_new_namespace():
    """Get a namespace of mounts that ends with this process. Returns whether that is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users = 0x0002_0000, 0x1000_0000
    if libc.unshare(new_mounts) == 0:
        # Lest what is mounted here is seen outside: MS_REC | MS_PRIVATE.
        return libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
    return libc.unshare(new_mounts | new_users) == 0


def mount_small(path):
    """Mount a file system of 1 MiB there, in memory. Returns whether that is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", 0, b"size=1m") == 0


def fill_small_file_system(path, durable, pipe):
    """Runs in a child: as `fill`, on a file system that is full some time; then read it anew."""
    if not (mount_in_new_namespace() and mount_small(Path(path).parent)):
        tell(pipe, "may not mount")
        return
    fill(path, durable, pipe)
    read_again(path, pipe)


def fill_limited_file(path, durable, pipe):
    """Runs in a child: as `fill`, where a file may not grow beyond a size; then read it anew."""
    limit_file_size(1_000_000)
    fill(path, durable, pipe)
    read_again(path, pipe)


def read_again(path, pipe):
    async def main():
        async with open_database(path) as db:
            check_store(db.engine)
            found = [document.id async for document in db.default_collection.documents()]
            tell(pipe, "found", sorted(found))

    trio.run(main)


def may_mount(pipe):
    with tempfile.TemporaryDirectory() as directory:
        allowed = mount_in_new_namespace() and mount_small(directory)
        if allowed:
            ctypes.CDLL(None).umount(directory.encode())
        tell(pipe, allowed)
