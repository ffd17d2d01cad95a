"""Opening a database directory: its lock, its LMDB environment, its format and identity.

Nothing else opens an environment: opening one twice in a process corrupts LMDB's own locks.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from trio_p2p.errors import (
    DatabaseBusyError,
    DatabaseNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFormatError,
)
from trio_p2p.ids import DatabaseID, SourceID, source_id
from trio_p2p.store import keys, records, schema
from trio_p2p.store.records import CollectionState
from trio_p2p.store.schema import Tables
from trio_p2p.store.transaction import store_error

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock"


@dataclass(frozen=True, slots=True)
class Environment:
    """An open database directory, and what was read at opening."""

    path: Path
    env: lmdb.Environment
    tables: Tables
    id: DatabaseID
    source: SourceID
    clock_last: int
    collections: dict[int, CollectionState]
    lock: int

    def close(self) -> None:
        """Close the files and let others open the directory. No transaction may be open."""
        self.env.close()
        os.close(self.lock)


def open_environment(path: Path, *, create: bool, map_size: int, sync: bool) -> Environment:
    """Open a database directory, making it first if `create` is set.

    Without `sync` commits do not wait for the disk and a power cut may damage the file.

    Raises: DatabaseNotFoundError, DatabaseBusyError, StoreCorruptError, StoreFormatError, or
    StoreError for what the operating system refuses; each names the path.
    """
    if not create and not (path / DATA_FILE).is_file():
        raise DatabaseNotFoundError("there is no database at this path", path=str(path))
    lock = _lock_directory(path)
    try:
        with _naming_path(path):
            env = _open_lmdb(path, map_size, sync)
            try:
                return _read_environment(path, env, lock)
            except BaseException:
                env.close()
                raise
    except BaseException:
        os.close(lock)
        raise


def _lock_directory(path: Path) -> int:
    """Hold the lock file of the directory, which is made if missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise StoreError(
            "the database directory cannot be used", path=str(path), reason=exc.strerror
        ) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(lock)
        raise DatabaseBusyError("the database is already open", path=str(path)) from exc
    return lock


@contextmanager
def _naming_path(path: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as exc:
        failure = store_error(exc)
        raise type(failure)(failure.message, path=str(path), **failure.facts) from exc


def _open_lmdb(path: Path, map_size: int, sync: bool) -> lmdb.Environment:
    # Engine 0 has had one file format for ten years; the other one's is unreadable to it.
    env = lmdb.open(  # noqa: TID251
        str(path),
        map_size=map_size,
        sync=sync,
        metasync=sync,
        mode=0o644,
        max_dbs=len(Tables.__slots__),
        lib_version=0,
    )
    env.reader_check()
    _restore_length(path / DATA_FILE, env)
    return env


def _restore_length(file: Path, env: lmdb.Environment) -> None:
    """Append the zeros that a truncated file lacks.

    Reading a mapped page behind the end of the file would kill the process; zeros LMDB reports as
    damage. A file may end early without harm, where the pages missing were free.
    """
    length = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if file.stat().st_size < length:
        os.truncate(file, length)


def _read_environment(path: Path, env: lmdb.Environment, lock: int) -> Environment:
    """Check the format, prepare a new database, and read what is kept in memory."""
    with env.begin(write=True) as txn:
        _check_format(path, env, txn)
        tables = Tables.open(env, txn)
        if txn.get(schema.META_FORMAT, db=tables.meta) is None:
            _write_identity(txn, tables)
        collections = {
            keys.read_collection(key)[0]: records.unpack_collection(value)
            for key, value in txn.cursor(tables.collections)
        }
        facts = dict(txn.cursor(tables.meta))
    try:
        database_id = DatabaseID(uuid.UUID(bytes=facts[schema.META_DATABASE_ID]))
        source = source_id(facts[schema.META_SOURCE_ID])
        (clock_last,) = keys.read_number(facts[schema.META_CLOCK])
    except (KeyError, ValueError) as exc:
        raise StoreCorruptError("the database lacks its identity", path=str(path)) from exc
    return Environment(path, env, tables, database_id, source, clock_last, collections, lock)


def _check_format(path: Path, env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> None:
    """Refuse what this version cannot read, before anything is written to it."""
    if txn.stat()["entries"] == 0:
        return
    found = None
    if txn.get(b"meta") is not None:
        found = txn.get(schema.META_FORMAT, db=env.open_db(b"meta", txn=txn, create=False))
    if found is None:
        raise StoreFormatError("the data file is of another program", path=str(path))
    (version,) = keys.read_number(found)
    if version != schema.FORMAT_VERSION:
        raise StoreFormatError(
            "the database is in a format this version does not read",
            path=str(path),
            format=version,
            readable=schema.FORMAT_VERSION,
        )


def _write_identity(txn: lmdb.Transaction[bytes], tables: Tables) -> None:
    txn.put(schema.META_FORMAT, keys.number(schema.FORMAT_VERSION), db=tables.meta)
    txn.put(schema.META_DATABASE_ID, uuid.uuid4().bytes, db=tables.meta)
    txn.put(schema.META_SOURCE_ID, os.urandom(16), db=tables.meta)
    txn.put(schema.META_CLOCK, keys.number(0), db=tables.meta)
    default = records.pack_collection(CollectionState("_default"))
    txn.put(keys.collection(schema.DEFAULT_COLLECTION), default, db=tables.collections)
