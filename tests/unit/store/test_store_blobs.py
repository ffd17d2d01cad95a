"""Blobs: saved once, whole or not there, checked when read, and kept as long as they are needed."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import (
    BlobNotFoundError,
    InvalidDocumentError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
)
from trio_p2p.model.blob import format_digest
from trio_p2p.store import blob_files, blob_uses, conflicts
from trio_p2p.store.blob_files import BLOB_DIRECTORY, UNFINISHED_DIRECTORY
from trio_p2p.store.database import Blob, open_database
from trio_p2p.store.engine import Engine
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.driver import TrioDriver

NOW = 1_800_000_000 * 10**9
HOUR_NS = 3600 * 10**9


class Wall:
    """A clock that the test sets."""

    def __init__(self):
        self.now_ns = NOW

    def __call__(self):
        return self.now_ns


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
async def db(path, wall):
    async with open_test_database(path, clock=wall) as db:
        yield db


def digest(content):
    return format_digest(hashlib.sha1(content).digest())


def files(path, directory=BLOB_DIRECTORY):
    """The names of the files in a directory of the database."""
    found = path / directory
    return sorted(entry.name for entry in found.iterdir()) if found.exists() else []


async def parts(*given):
    for part in given:
        await trio.lowlevel.checkpoint()
        yield part


async def forget_and_compact(db):
    """Compact, with no object of a blob left that the test does not name."""
    gc.collect()
    return await db.compact()


# --- Saving and reading --------------------------------------------------------------------------


async def test_a_blob_reads_back_from_the_document_that_names_it(db, notes):
    blob = await db.save_blob(b"picture", "image/png")
    assert (blob.digest, blob.length, blob.content_type) == (digest(b"picture"), 7, "image/png")
    await notes.put("a", {"photo": blob, "more": [{"deep": blob}]})
    body = notes.get("a").body
    assert isinstance(body["photo"], Blob)
    assert body == {"photo": blob, "more": [{"deep": blob}]}
    assert await body["more"][0]["deep"].read() == b"picture"


async def test_a_blob_stands_in_a_body_as_couchbase_lite_has_it(db, notes):
    await notes.put("a", {"photo": await db.save_blob(b"picture")})
    with_type = notes.get("a").revision.body
    await notes.put("a", {"photo": {
        "@type": "blob",
        "content_type": "application/octet-stream",
        "digest": digest(b"picture"),
        "length": 7,
    }})  # fmt: skip
    assert notes.get("a").revision.body == with_type


async def test_a_blob_that_tells_more_keeps_that(db, notes):
    await db.save_blob(b"picture")
    properties = {"@type": "blob", "digest": digest(b"picture"), "caption": "Ann"}
    await notes.put("a", {"photo": properties})
    blob = notes.get("a")["photo"]
    assert (blob.length, blob.content_type) == (7, "")
    document = await notes.put("b", {"photo": blob})
    assert document.revision.body == notes.get("a").revision.body


@pytest.mark.parametrize("size", [0, 1, limits.BLOB_PART_BYTES, 2 * limits.BLOB_PART_BYTES + 1])
async def test_a_blob_may_have_any_size_and_come_in_any_parts(db, path, size):
    content = os.urandom(size)
    whole = await db.save_blob(content)
    cut = size // 3
    in_parts = await db.save_blob(parts(content[:cut], b"", bytearray(content[cut:])))
    assert whole == in_parts
    assert await whole.read() == content
    async with whole.open() as stream:
        assert b"".join([part async for part in stream]) == content
    assert files(path) == [hashlib.sha1(content).hexdigest()]


async def test_parts_are_read_no_larger_than_asked_for(db):
    blob = await db.save_blob(b"abcde")
    async with blob.open() as stream:
        assert await stream.receive_some(2) == b"ab"
        assert await stream.receive_some(9) == b"cde"
        assert await stream.receive_some(9) == b""
        with pytest.raises(ValueError, match="max_bytes"):
            await stream.receive_some(0)
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some(1)


@pytest.mark.parametrize("data", ["text", None, 7, [b"a"]])
async def test_a_blob_is_made_of_bytes(db, data):
    with pytest.raises(InvalidDocumentError):
        await db.save_blob(data)


async def test_a_part_that_is_not_bytes_is_refused_and_leaves_nothing(db, path):
    async with aclosing(parts(b"a", "b")) as data:
        with pytest.raises(InvalidDocumentError):
            await db.save_blob(data)
    assert files(path) == files(path, UNFINISHED_DIRECTORY) == []


@pytest.mark.parametrize("content_type", [None, 7, "a\nb", "a\0"])
async def test_a_content_type_is_printable_text(db, content_type):
    with pytest.raises(InvalidDocumentError):
        await db.save_blob(b"a", content_type)


async def test_a_blob_that_is_too_large_is_refused_and_leaves_nothing(db, path, monkeypatch):
    monkeypatch.setattr(limits, "BLOB_BYTES_MAX", 3)
    await db.save_blob(b"abc")
    async with aclosing(parts(b"ab", b"cd")) as in_parts:
        for data in (b"abcd", in_parts):
            with pytest.raises(InvalidDocumentError):
                await db.save_blob(data)
    assert files(path, UNFINISHED_DIRECTORY) == []
    assert len(files(path)) == 1


async def test_what_the_parts_raise_comes_out_and_leaves_nothing(db, path):
    async def failing():
        yield b"a" * limits.BLOB_PART_BYTES
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await db.save_blob(failing())
    assert files(path) == files(path, UNFINISHED_DIRECTORY) == []


@pytest.mark.parametrize("turns", range(8))
async def test_saving_that_is_cancelled_leaves_no_unfinished_file(db, path, turns):
    async def cancelling():
        for turn in range(8):
            if turn == turns:
                scope.cancel()
            yield b"a" * limits.BLOB_PART_BYTES
            await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        await db.save_blob(cancelling())
    assert scope.cancelled_caught
    assert files(path) == files(path, UNFINISHED_DIRECTORY) == []


async def test_a_body_that_names_a_blob_of_another_database_is_refused(db, notes, tmp_path):
    async with open_test_database(tmp_path / "other") as other:
        blob = await other.save_blob(b"theirs")
        for write in (notes.put("a", {"b": blob}), notes.update("a", lambda _: {"b": blob})):
            with pytest.raises(BlobNotFoundError) as caught:
                await write
            assert digest(b"theirs") in str(caught.value)
        async with notes.batch() as batch:
            batch.put("a", {})
            with pytest.raises(BlobNotFoundError):
                batch.put("b", {"b": blob})
    assert notes.last_sequence == 1


async def test_a_blob_that_vanished_is_not_found(db, path, notes):
    blob = await db.save_blob(b"gone")
    await notes.put("a", {"b": blob})
    (path / BLOB_DIRECTORY / files(path)[0]).unlink()
    with pytest.raises(BlobNotFoundError):
        await notes.get("a")["b"].read()


@pytest.mark.parametrize("damage", [b"", b"abcdf", b"abcdef", b"abcd"])
async def test_damage_is_noticed_when_a_blob_is_read(db, path, damage):
    blob = await db.save_blob(b"abcde")
    (path / BLOB_DIRECTORY / files(path)[0]).write_bytes(damage)
    with pytest.raises(StoreCorruptError) as caught:
        await blob.read()
    assert caught.value.facts["digest"] == blob.digest
    await db.save_blob(b"abcde")
    assert await blob.read() == b"abcde"


async def test_blobs_of_a_closed_database_are_neither_saved_nor_read(path):
    async with open_test_database(path) as db:
        blob = await db.save_blob(b"a")
    for use in (db.save_blob(b"b"), blob.read()):
        with pytest.raises(StoreClosedError):
            await use


@pytest.mark.parametrize("failing", ["fsync", "utime", "replace", "open"])
async def test_a_disk_that_fails_is_a_typed_error_and_leaves_nothing(
    db, path, monkeypatch, failing
):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    await db.save_blob(b"before")
    with monkeypatch.context() as patch:
        if failing in ("fsync", "utime"):
            patch.setattr(os, failing, fail)
        else:
            patch.setattr(Path, failing, fail)
        with pytest.raises(StoreError, match="No space left") as caught:
            await db.save_blob(b"now")
    assert caught.value.facts["path"] == str(path)
    assert files(path, UNFINISHED_DIRECTORY) == []
    assert len(files(path)) == 1
    await db.save_blob(b"now")


async def test_what_a_crash_left_unfinished_is_gone_after_the_next_opening(path):
    async with open_test_database(path):
        (path / UNFINISHED_DIRECTORY).mkdir()
        (path / UNFINISHED_DIRECTORY / "half").write_bytes(b"half")
    async with open_test_database(path):
        assert files(path, UNFINISHED_DIRECTORY) == []


async def test_saving_in_threads_works_as_well(path):
    async with open_database(path) as db:
        saved = []

        async def save(number):
            saved.append(await db.save_blob(parts(b"%d" % number, b"x" * 300_000)))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(save, number % 10)
        assert len(set(saved)) == len(files(path)) == 10
        for blob in saved:
            assert digest(await blob.read()) == blob.digest


# --- Receiving from elsewhere --------------------------------------------------------------------

WHOLE = bytes(range(256)) * 10
WHOLE_SHA1 = hashlib.sha1(WHOLE).digest()


async def test_a_blob_that_comes_in_several_goes_is_whole_at_the_end(path):
    for start in range(0, len(WHOLE), 1000):
        async with open_test_database(path) as db, db.engine.blobs.receive(WHOLE_SHA1) as incoming:
            assert incoming.length == start
            await incoming.write(WHOLE[start : start + 1000])
            if start + 1000 >= len(WHOLE):
                assert await incoming.finish()
    async with open_test_database(path) as db:
        async with db.engine.blobs.receive(WHOLE_SHA1) as incoming:
            assert incoming is None
        async with db.engine.blobs.open(WHOLE_SHA1) as stream:
            assert b"".join([part async for part in stream]) == WHOLE
    assert files(path, UNFINISHED_DIRECTORY) == []


async def test_a_blob_that_is_not_what_it_was_called_is_dropped(db, path):
    async with db.engine.blobs.receive(WHOLE_SHA1) as incoming:
        await incoming.write(WHOLE[:-1] + b"?")
        assert not await incoming.finish()
    assert files(path) == files(path, UNFINISHED_DIRECTORY) == []
    async with db.engine.blobs.receive(WHOLE_SHA1) as incoming:
        assert incoming.length == 0
        await incoming.write(b"something else")
        await incoming.restart()
        await incoming.write(WHOLE)
        assert await incoming.finish()


async def test_a_blob_is_received_by_one_at_a_time(db, path):
    order = []

    async def receive(name):
        async with db.engine.blobs.receive(WHOLE_SHA1) as incoming:
            order.append((name, incoming is None))
            if incoming is not None:
                await incoming.write(WHOLE)
                await incoming.finish()

    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(receive, name)
    assert sorted(missing for _, missing in order) == [False, True]


async def test_a_blob_of_which_no_more_comes_is_gone_on_with_by_one_that_waits(db, autojump_clock):
    async def stall():
        async with db.engine.blobs.receive(WHOLE_SHA1) as incoming:
            await incoming.write(WHOLE[:1000])
            await trio.sleep_forever()
        # Cut off; and by now, or soon, it is here.
        async with db.engine.blobs.receive(WHOLE_SHA1) as incoming:
            assert incoming is None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stall)
        await trio.testing.wait_all_tasks_blocked()
        async with db.engine.blobs.receive(WHOLE_SHA1, patience_s=5) as incoming:
            assert trio.current_time() == 5
            assert incoming.length == 1000
            await incoming.write(WHOLE[1000:])
            assert await incoming.finish()


async def test_a_blob_that_was_begun_and_left_is_dropped_after_an_hour(db, path, wall):
    async with db.engine.blobs.receive(WHOLE_SHA1) as incoming:
        await incoming.write(b"some")
    begun = path / UNFINISHED_DIRECTORY / WHOLE_SHA1.hex()
    os.utime(begun, ns=(NOW, NOW))
    wall.now_ns = NOW + HOUR_NS
    await db.compact()
    assert begun.exists()
    wall.now_ns += 1
    await db.compact()
    assert not begun.exists()


@pytest.mark.parametrize(("start", "at"), [(0, 0), (1, 1), (len(WHOLE), len(WHOLE)), (9**9, 0)])
async def test_a_blob_is_read_from_any_place_on(db, start, at):
    await db.save_blob(WHOLE)
    async with db.engine.blobs.open(WHOLE_SHA1, start) as stream:
        assert stream.start == at
        assert b"".join([part async for part in stream]) == WHOLE[at:]


# --- Dropping ------------------------------------------------------------------------------------


async def test_a_blob_is_dropped_once_no_document_names_it(db, notes, path):
    for document_id in "ab":
        await notes.put(document_id, {"photo": await db.save_blob(b"picture")})
    await notes.put("a", {})
    assert (await forget_and_compact(db)).blobs_removed == 0
    await notes.delete("b")
    result = await forget_and_compact(db)
    assert (result.blobs_removed, result.blob_bytes_freed) == (1, 7)
    assert files(path) == []
    with pytest.raises(BlobNotFoundError):
        await notes.put("c", {"photo": {"@type": "blob", "digest": digest(b"picture")}})


@pytest.mark.parametrize("remove", ["purge", "expire", "drop", "overwrite"])
async def test_a_blob_goes_with_the_document_however_that_goes(db, path, wall, remove):
    other = await db.create_collection("other")
    await other.put("a", {"photo": await db.save_blob(b"picture")})
    match remove:
        case "purge":
            await other.purge("a")
        case "expire":
            await other.set_expiration("a", other.get("a").timestamp)
        case "drop":
            await db.delete_collection("other")
        case "overwrite":
            await other.put("a", {"photo": await db.save_blob(b"another")})
    assert (await forget_and_compact(db)).blobs_removed == 1
    assert len(files(path)) == (remove == "overwrite")


async def test_a_revision_that_waits_for_its_resolver_keeps_its_blobs(db, notes, revision):
    blob = await db.save_blob(b"picture")
    await notes.put("a", {"photo": blob})
    waiting = revision(5, body=notes.get("a").revision.body)
    await db.engine.write(lambda txn: conflicts.add(txn, notes.number, "a", waiting))
    await notes.put("a", {})
    del blob
    assert (await forget_and_compact(db)).blobs_removed == 0
    await db.engine.write(lambda txn: conflicts.remove(txn, notes.number, "a", waiting.version))
    assert (await forget_and_compact(db)).blobs_removed == 1


async def test_a_revision_that_names_a_missing_blob_cannot_wait(db, notes, revision):
    async with open_test_database(db.path.with_name("other")) as other:
        document = await other.default_collection.put("a", {"b": await other.save_blob(b"x")})
    with pytest.raises(BlobNotFoundError):
        await db.engine.write(lambda txn: conflicts.add(txn, notes.number, "a", document.revision))


async def test_a_blob_not_yet_named_is_spared_while_the_program_has_it(db, notes, path, wall):
    blob = await db.save_blob(b"picture")
    wall.now_ns += 2 * HOUR_NS
    assert (await forget_and_compact(db)).blobs_removed == 0
    await notes.put("a", {"photo": blob})
    await notes.delete("a")
    assert (await forget_and_compact(db)).blobs_removed == 0
    del blob
    assert (await forget_and_compact(db)).blobs_removed == 1


async def test_a_blob_is_spared_while_somebody_keeps_it(db, notes):
    kept = db.engine.blobs.keep(hashlib.sha1(b"picture").digest())
    await notes.put("a", {"photo": await db.save_blob(b"picture")})
    await notes.delete("a")
    gc.collect()
    assert (await forget_and_compact(db)).blobs_removed == 0
    del kept
    assert (await forget_and_compact(db)).blobs_removed == 1


async def test_a_blob_not_yet_named_is_spared_for_an_hour(path, wall):
    async with open_test_database(path, clock=wall) as db:
        await db.save_blob(b"picture")
    wall.now_ns += HOUR_NS
    async with open_test_database(path, clock=wall) as db:
        assert (await forget_and_compact(db)).blobs_removed == 0
        wall.now_ns += 1
        assert (await forget_and_compact(db)).blobs_removed == 1


async def test_a_blob_saved_anew_after_it_was_listed_is_spared(db, notes, path, wall):
    async def save_anew():
        wall.now_ns += HOUR_NS
        with open_blob.begin() as unfinished:
            unfinished.write(b"picture")
            unfinished.finish()

    await db.save_blob(b"picture")
    open_blob = db.engine.blob_files
    wall.now_ns += 2 * HOUR_NS
    listed = list(open_blob.all())
    await save_anew()
    assert not open_blob.remove_unless_saved_anew(listed[0], lambda sha1: False)
    assert len(files(path)) == 1


async def test_a_blob_is_spared_while_it_is_being_saved(path, monkeypatch):
    """It has its name already, but the directory is yet to be synced."""
    named, go_on, real = threading.Event(), threading.Event(), blob_files.files.sync_directory
    saved = []

    def sync_directory(directory):
        if threading.current_thread() is not threading.main_thread():
            named.set()
            go_on.wait()
        real(directory)

    async def save():
        saved.append(await db.save_blob(b"picture"))

    async with open_database(path) as db:
        notes = db.default_collection
        await notes.put("a", {"photo": await db.save_blob(b"picture")})
        await notes.purge("a")
        gc.collect()
        monkeypatch.setattr(blob_files.files, "sync_directory", sync_directory)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(save)
            await trio.to_thread.run_sync(named.wait)
            removed = (await db.compact()).blobs_removed
            go_on.set()
        assert removed == 0
        await notes.put("b", {"photo": saved[0]})
        assert await notes.get("b")["photo"].read() == b"picture"
        await notes.purge("b")
        saved.clear()
        gc.collect()
        assert (await db.compact()).blobs_removed == 1


async def test_a_blob_that_is_being_read_stays_readable(db, notes, path):
    await notes.put("a", {"photo": await db.save_blob(b"abc")})
    async with notes.get("a")["photo"].open() as stream:
        await notes.delete("a")
        await forget_and_compact(db)
        assert b"".join([part async for part in stream]) == b"abc"


async def test_a_put_between_listing_and_removing_keeps_the_blob(db, notes, path):
    """Both are the writer's: whichever comes first, no document names a missing blob."""
    properties = {"@type": "blob", "digest": digest(b"picture"), "length": 7}
    await notes.put("a", {"photo": await db.save_blob(b"picture")})
    await notes.delete("a")
    gc.collect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.compact)
        await trio.lowlevel.checkpoint()
        try:
            await notes.put("b", {"photo": properties})
        except BlobNotFoundError:
            assert files(path) == []
        else:
            assert len(files(path)) == 1


async def test_a_removal_that_fails_is_a_typed_error(db, notes, path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    await notes.put("a", {"photo": await db.save_blob(b"picture")})
    await notes.delete("a")
    gc.collect()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(StoreError, match="Input/output"):
            await db.compact()
    assert (await forget_and_compact(db)).blobs_removed == 1


async def test_other_files_among_the_blobs_are_left_alone(db, path):
    await db.save_blob(b"picture")
    (path / BLOB_DIRECTORY / "README").write_text("mine")
    await forget_and_compact(db)
    assert "README" in files(path)


# --- Backups, and what a power cut may bring back ------------------------------------------------


async def test_a_backup_has_the_blobs(db, notes, tmp_path):
    await notes.put("a", {"photo": await db.save_blob(b"picture")})
    await db.backup(tmp_path / "copy")
    await notes.purge("a")
    await forget_and_compact(db)
    async with open_test_database(tmp_path / "copy") as copy:
        assert await copy.default_collection.get("a")["photo"].read() == b"picture"
        assert files(copy.path, UNFINISHED_DIRECTORY) == []


async def test_no_blob_is_removed_while_a_backup_runs(db, notes, path):
    await notes.put("a", {"photo": await db.save_blob(b"picture")})
    await notes.delete("a")
    gc.collect()
    async with trio.open_nursery() as nursery:
        async with db.engine.copying:  # As a backup does.
            nursery.start_soon(db.compact)
            await trio.testing.wait_all_tasks_blocked()
            assert len(files(path)) == 1
    assert files(path) == []


async def test_a_blob_that_a_restart_may_need_again_is_kept(path, wall, monkeypatch):
    """Where commits do not wait for the disk, a power cut brings an earlier state back."""
    monkeypatch.setattr(limits, "SYNC_INTERVAL_S", 3600)
    async with open_database(path, clock=wall, durable=False) as db:
        notes = db.default_collection
        await notes.put("a", {"photo": await db.save_blob(b"picture")})
        await db.engine.sync()
        await notes.delete("a")
        gc.collect()
        sha1 = hashlib.sha1(b"picture").digest()

        async def nothing(_):
            await trio.lowlevel.checkpoint()

        def is_used(txn):
            return db.engine.ask_committed(lambda raw: blob_uses.is_used(raw, txn.tables, sha1))

        assert await db.engine.write(is_used) == [False, True]
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "sync", nothing)
            await db.compact()
        assert len(files(path)) == 1
        await db.compact()
        assert files(path) == []
        assert await db.engine.write(is_used) == [False, False]


# --- Whole histories -----------------------------------------------------------------------------

CONTENTS = [b"one", b"two", b"three"]
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "purge", "compact", "reopen", "conflict"]),
        st.sampled_from(["a", "b"]),
        st.lists(st.sampled_from(CONTENTS), max_size=2),
    ),
    max_size=12,
)


@given(steps)
def test_exactly_the_blobs_that_revisions_name_are_kept(tmp_path_factory, history):
    path = tmp_path_factory.mktemp("blobs") / "db"
    driver = TrioDriver()

    async def play():
        named = {}
        db = await driver.nursery.start(hold, path, closing := [trio.Event(), trio.Event()])
        for step, document_id, contents in history:
            notes = db.default_collection
            match step:
                case "put":
                    blobs = [await db.save_blob(content) for content in contents]
                    await notes.put(document_id, {"blobs": blobs})
                    del blobs
                    named[document_id] = set(contents)
                case "delete" if notes.get(document_id):
                    await notes.delete(document_id)
                    named[document_id] = set()
                case "purge":
                    await notes.purge(document_id)
                    named.pop(document_id, None)
                    named.pop(("waiting", document_id), None)
                case "conflict" if document := notes.get(document_id):
                    await db.engine.write(
                        lambda txn, document=document, notes=notes: conflicts.add(
                            txn, notes.number, document.id, document.revision
                        )
                    )
                    named["waiting", document_id] = named[document_id]
                    del document
                case "reopen":
                    closing[0].set()
                    await closing[1].wait()
                    db = await driver.nursery.start(
                        hold, path, closing := [trio.Event(), trio.Event()]
                    )
                case "compact":
                    await forget_and_compact(db)
                    present = files(path)
                    needed = {hashlib.sha1(c).hexdigest() for cs in named.values() for c in cs}
                    assert set(present) == needed
        for document_id in "ab":
            document = db.default_collection.get(document_id)
            for blob in document.body["blobs"] if document else []:
                assert await blob.read() in CONTENTS

    async def hold(path, closing, task_status):
        async with open_test_database(path) as db:
            task_status.started(db)
            await closing[0].wait()
        closing[1].set()

    try:
        driver.run(play)
    finally:
        driver.close()
