from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from trio_p2p import limits
from trio_p2p.errors import (
    DatabaseBusyError,
    DatabaseNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFormatError,
)
from trio_p2p.store import environment as environment_module
from trio_p2p.store import keys, schema
from trio_p2p.store.environment import DATA_FILE, open_environment


@contextmanager
def opened(path, *, create=True):
    environment = open_environment(
        path, create=create, size_max=limits.MAP_SIZE_BYTES_DEFAULT, sync=False
    )
    try:
        yield environment
    finally:
        environment.close()


@contextmanager
def raises_naming(path, kind):
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert caught.value.facts["path"] == str(path)


def test_a_new_database_gets_an_identity_that_it_keeps(tmp_path):
    with opened(tmp_path / "a") as first, opened(tmp_path / "b") as other:
        assert first.identity.id != other.identity.id
        assert first.identity.source != other.identity.source
        assert [state.full_name for state in first.collections.values()] == ["_default"]
    with opened(tmp_path / "a") as again:
        assert again.identity == first.identity


def test_missing_parents_are_made(tmp_path):
    with opened(tmp_path / "deep" / "down"):
        assert (tmp_path / "deep" / "down" / DATA_FILE).is_file()


@pytest.mark.parametrize("make", ["nothing", "an empty directory", "a file"])
def test_what_is_no_database_is_not_found(path, make):
    if make == "an empty directory":
        path.mkdir()
    elif make == "a file":
        path.write_bytes(b"")
    before = sorted(path.parent.rglob("*"))
    with raises_naming(path, DatabaseNotFoundError), opened(path, create=False):
        pass
    assert sorted(path.parent.rglob("*")) == before


def test_an_existing_database_opens_without_being_created(path):
    with opened(path):
        pass
    with opened(path, create=False) as environment:
        assert environment.path == path


def test_a_file_in_place_of_the_directory_is_refused(path):
    path.write_bytes(b"mine")
    with raises_naming(path, StoreError), opened(path):
        pass
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("call", ["open", "mkdir"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "ro")])
def test_a_directory_that_cannot_be_written_to_is_told(path, monkeypatch, call, error):
    """The superuser may write anywhere, so the system's answer is made up."""

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(*((os, "open") if call == "open" else (Path, "mkdir")), refuse)
    with raises_naming(path, StoreError), opened(path):
        pass


def test_a_data_file_that_cannot_be_read_is_told(path):
    (path / DATA_FILE).mkdir(parents=True)
    with raises_naming(path, StoreError), opened(path):
        pass


def test_a_failure_before_the_data_file_is_opened_is_told(path, monkeypatch):
    def fail(data_file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(environment_module, "recover", fail)
    with raises_naming(path, StoreError), opened(path):
        pass
    monkeypatch.undo()
    with opened(path):
        pass


def test_a_data_file_whose_first_pages_were_written_over_is_damage(path):
    with opened(path) as environment, environment.env.begin(write=True) as txn:
        for number in range(2000):
            txn.put(keys.number(number), bytes(100), db=environment.tables.documents)
    raw = (path / DATA_FILE).read_bytes()
    (path / DATA_FILE).write_bytes(b"?" * 8192 + raw[8192:])
    with raises_naming(path, StoreCorruptError), opened(path):
        pass


def test_a_database_opens_only_once_in_a_process(path):
    with opened(path):
        with raises_naming(path, DatabaseBusyError), opened(path):
            pass
        link = path.with_name("link")
        link.symlink_to(path)
        with raises_naming(link, DatabaseBusyError), opened(link):
            pass
    with opened(path):
        pass


def test_a_database_open_in_another_process_is_busy(path):
    program = (
        "import sys; from pathlib import Path\n"
        "from trio_p2p.store.environment import open_environment\n"
        "try: open_environment(Path(sys.argv[1]), create=True, size_max=2**30, sync=False)\n"
        "except Exception as exc: print(type(exc).__name__)"
    )
    with opened(path):
        told = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
        )
    assert told.stdout == "DatabaseBusyError\n"


@pytest.mark.parametrize("content", [b"x", b"x" * 4096, b"\0" * 8192, os.urandom(20_000)])
def test_a_data_file_of_garbage_is_damage(path, content):
    path.mkdir()
    (path / DATA_FILE).write_bytes(content)
    with raises_naming(path, StoreCorruptError), opened(path):
        pass


def test_a_failed_opening_leaves_the_directory_free(path):
    path.mkdir()
    (path / DATA_FILE).write_bytes(b"x" * 8192)
    with raises_naming(path, StoreCorruptError), opened(path):
        pass
    (path / DATA_FILE).unlink()
    with opened(path):
        pass


def test_a_truncated_data_file_is_damage_and_no_crash(path):
    with opened(path) as environment, environment.env.begin(write=True) as txn:
        for number in range(2000):
            txn.put(keys.number(number), bytes(100), db=environment.tables.documents)
    length = (path / DATA_FILE).stat().st_size
    whole = path.with_name("whole")
    path.rename(whole)
    for cut in range(8192, length - 8192, 16_384):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        os.truncate(path / DATA_FILE, cut)
        with raises_naming(path, StoreCorruptError), opened(path):
            pass


def test_a_newer_format_is_refused_and_left_alone(path):
    with opened(path) as environment, environment.env.begin(write=True) as txn:
        newer = keys.number(schema.FORMAT_VERSION + 1)
        txn.put(schema.META_FORMAT, newer, db=environment.tables.meta)
    content = (path / DATA_FILE).read_bytes()
    with raises_naming(path, StoreFormatError), opened(path):
        pass
    assert (path / DATA_FILE).read_bytes() == content


def test_an_lmdb_file_of_another_program_is_refused_and_left_alone(path):
    path.mkdir()
    with lmdb.open(str(path), lib_version=0) as env, env.begin(write=True) as txn:  # noqa: TID251
        txn.put(b"theirs", b"1")
    with raises_naming(path, StoreFormatError), opened(path):
        pass
    with lmdb.open(str(path), lib_version=0) as env, env.begin() as txn:  # noqa: TID251
        assert list(txn.cursor()) == [(b"theirs", b"1")]


def test_a_key_that_is_none_is_damage(path):
    with opened(path) as environment, environment.env.begin(write=True) as txn:
        txn.put(b"?", b"", db=environment.tables.collections)
    with raises_naming(path, StoreCorruptError), opened(path):
        pass


def test_a_database_without_its_default_collection_is_damage(path):
    with opened(path) as environment, environment.env.begin(write=True) as txn:
        txn.delete(keys.collection(1), db=environment.tables.collections)
    with raises_naming(path, StoreCorruptError), opened(path):
        pass


def test_a_collection_whose_record_was_damaged_is_damage(path):
    with opened(path) as environment, environment.env.begin(write=True) as txn:
        record = bytearray(txn.get(keys.collection(1), db=environment.tables.collections))
        record[7] ^= 1
        txn.put(keys.collection(1), bytes(record), db=environment.tables.collections)
    with raises_naming(path, StoreCorruptError), opened(path):
        pass


def test_a_database_without_its_identity_is_damage(path):
    with opened(path) as environment, environment.env.begin(write=True) as txn:
        txn.delete(schema.META_SOURCE_ID, db=environment.tables.meta)
    with raises_naming(path, StoreCorruptError), opened(path):
        pass
