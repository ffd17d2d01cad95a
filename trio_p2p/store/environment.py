"""Opening a database directory: its lock, its LMDB environment, its format and identity.

Nothing else opens an environment: opening one twice in a process corrupts LMDB's own locks.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from trio_p2p import limits
from trio_p2p.errors import (
    AddressesExhaustedError,
    DatabaseNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFormatError,
)
from trio_p2p.ids import DatabaseID, source_id
from trio_p2p.store import files, identity, keys, mapping, records, schema
from trio_p2p.store.blob_files import clear_unfinished
from trio_p2p.store.deferred import Holder, recover
from trio_p2p.store.directory import DirectoryLock
from trio_p2p.store.migrations import FORMER_TABLES, MIGRATIONS, migrate
from trio_p2p.store.pages import check_pages
from trio_p2p.store.records import CollectionState, Identity
from trio_p2p.store.schema import Tables
from trio_p2p.store.transaction import UNREADABLE, store_error, system_code, unreadable

DATA_FILE: Final = "data.mdb"

_UNUSABLE: Final = "the database directory cannot be used: make sure that it may be written to"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Environment:
    """An open database directory, and what was read at opening."""

    path: Path
    env: lmdb.Environment
    tables: Tables
    identity: Identity
    clock_last: int
    collections: dict[int, CollectionState]
    size_max: int
    holder: Holder | None
    """Holds a state that is on the disk, where commits do not wait for that."""
    lock: DirectoryLock

    def close(self) -> None:
        """Close the files and let others open the directory. No transaction may be open.

        Raises: StoreError if what was committed could not be made durable; it is closed then too.
        """
        try:
            if self.holder is not None:
                self.holder.end()
            self.env.close()
            self.lock.note_closed()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """As `close`, but as if the process died."""
        self.env.close()
        self.lock.release()


def open_environment(
    path: Path, *, create: bool, size_max: int, sync: bool, durable: bool = True
) -> Environment:
    """Open a database directory, making it first if `create` is set.

    If it is not `durable`, commits do not wait for the disk, and a power cut takes the last ones
    with it. Without `sync` nothing does, and a power cut may damage the file: for tests.

    Where addresses are scarce (see `mapping`) the size limit becomes lower than `size_max`.

    Raises: DatabaseNotFoundError, DatabaseBusyError, AddressesExhaustedError, StoreCorruptError,
    StoreFormatError, or StoreError for what the operating system refuses; each names the path.
    """
    with _naming_path(path):
        if not create and not (path / DATA_FILE).is_file():
            raise DatabaseNotFoundError("there is no database at this path")
        lock = DirectoryLock(path, sync=sync)
        try:
            _prepare_files(path, lock)
            env, size_max = _open_lmdb(path, size_max, sync and durable)
            try:
                # Before the first commit, even where that makes the database.
                holder = None if durable else Holder(env, path / DATA_FILE)
                environment = _read_environment(path, env, size_max, holder, lock)
                lock.sync_entries()
                return environment
            except BaseException:
                env.close()
                raise
        except BaseException:
            lock.release()
            raise


def _prepare_files(path: Path, lock: DirectoryLock) -> None:
    """Make sure that the files are what the last process to use them left, and on the disk."""
    data_file = path / DATA_FILE
    is_made = data_file.exists()
    if is_made:
        # What that process had yet to sync is about to be read, and built upon.
        lock.sync_entries(DATA_FILE)
    recover(data_file)
    clear_unfinished(path)
    if is_made and lock.is_suspect:
        _check_pages(data_file)
    lock.note_use()


def _check_pages(data_file: Path) -> None:
    length = data_file.stat().st_size
    if length <= limits.CHECKED_FILE_BYTES_MAX:
        check_pages(data_file)
    else:
        logger.warning(
            "%s was not closed, but is too large to be checked (%d bytes)", data_file, length
        )


@contextmanager
def _naming_path(path: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as exc:
        failure = store_error(exc)
        if system_code(exc) in (errno.EACCES, errno.EPERM, errno.EROFS):
            failure = StoreError(_UNUSABLE, reason=str(exc))
        raise type(failure)(failure.message, path=str(path), **failure.facts) from exc
    except OSError as exc:
        raise files.failure(_UNUSABLE, path, exc) from exc
    except UNREADABLE as exc:
        failure = unreadable(exc)
        raise type(failure)(failure.message, path=str(path), **failure.facts) from exc
    except StoreError as exc:
        exc.facts.setdefault("path", str(path))
        raise


def _open_lmdb(path: Path, size_max: int, sync: bool) -> tuple[lmdb.Environment, int]:
    """Open the environment. Returns it and the size limit, lowered if addresses are scarce."""
    file = path / DATA_FILE
    length = file.stat().st_size if file.exists() else 0
    failure: Exception | None = None
    for size in mapping.sizes(size_max, length):
        try:
            # Engine 0 has had one file format for ten years; the other one's is unreadable to it.
            env = lmdb.open(  # noqa: TID251
                str(path),
                map_size=mapping.map_bytes(size),
                sync=sync,
                metasync=sync,
                mode=0o644,
                max_dbs=len(Tables.__slots__) + len(FORMER_TABLES),
                lib_version=0,
            )
        except (lmdb.MemoryError, OverflowError) as exc:
            failure = exc
            continue
        if size < size_max:
            logger.warning("%s is limited to %d bytes: addresses are scarce", path, size)
        try:
            env.reader_check()
            _restore_length(file, env)
        except BaseException:
            env.close()
            raise
        return env, min(size, size_max)
    raise AddressesExhaustedError(
        "there are too few free addresses to map the database: let the process have more of them"
        " (ulimit -v), close other databases, or open it on a 64-bit system",
        path=str(path),
    ) from failure


def _restore_length(file: Path, env: lmdb.Environment) -> None:
    """Append the zeros that a truncated file lacks.

    Reading a mapped page behind the end of the file would kill the process. A file may end early
    without harm, where the pages missing were free.
    """
    length = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if file.stat().st_size < length:
        check_pages(file)
        os.truncate(file, length)


def _read_environment(
    path: Path, env: lmdb.Environment, size_max: int, holder: Holder | None, lock: DirectoryLock
) -> Environment:
    """Check the format, prepare a new database, and read what is kept in memory."""
    with env.begin(write=True) as txn:
        version = _read_format(path, env, txn)
        tables = Tables.open(env, txn)
        if version is None:
            _write_new(txn, tables)
        elif version != schema.FORMAT_VERSION:
            migrate(env, txn, tables, version)
        renewed = identity.is_marked(path)
        if renewed:
            identity.renew(txn, tables)
        collections = {
            keys.read_collection(key)[0]: records.unpack_collection(value, key)
            for key, value in txn.cursor(tables.collections)
        }
        facts = dict(txn.cursor(tables.meta))
        if schema.DEFAULT_COLLECTION not in collections:
            raise StoreCorruptError("the database lacks its collections: restore a backup")
    if renewed:
        identity.unmark(path)
    try:
        database_id = DatabaseID(uuid.UUID(bytes=facts[schema.META_DATABASE_ID]))
        found = Identity(database_id, source_id(facts[schema.META_SOURCE_ID]))
        clock_last, *_ = (
            keys.read_number(facts[key])[0] for key in (schema.META_CLOCK, *schema.META_COUNTERS)
        )
    except (KeyError, ValueError, struct.error) as exc:
        raise StoreCorruptError(
            "the database lacks its identity: restore a backup", path=str(path)
        ) from exc
    return Environment(path, env, tables, found, clock_last, collections, size_max, holder, lock)


def _read_format(path: Path, env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> int | None:
    """The format version, None for a new file. Refuses what cannot be read before it is changed."""
    if txn.stat()["entries"] == 0:
        return None
    found = None
    if txn.get(b"meta") is not None:
        found = txn.get(schema.META_FORMAT, db=env.open_db(b"meta", txn=txn, create=False))
    if found is None:
        raise StoreFormatError(
            "the data file is of another program: choose another directory", path=str(path)
        )
    version: int = keys.read_number(found)[0]
    if version != schema.FORMAT_VERSION and version not in MIGRATIONS:
        raise StoreFormatError(
            "the database is in a format this version does not read: use the newer program",
            path=str(path),
            format=version,
            readable=schema.FORMAT_VERSION,
        )
    return version


def _write_new(txn: lmdb.Transaction[bytes], tables: Tables) -> None:
    identity.renew(txn, tables)
    facts = {
        schema.META_FORMAT: schema.FORMAT_VERSION,
        schema.META_CLOCK: 0,
        schema.META_LAST_COLLECTION: schema.DEFAULT_COLLECTION,
        schema.META_LAST_REMOTE: 0,
        schema.META_SEQUENCE_FLOOR: 0,
    }
    for key, number in facts.items():
        txn.put(key, keys.number(number), db=tables.meta)
    key = keys.collection(schema.DEFAULT_COLLECTION)
    default = records.pack_collection(CollectionState("_default"), key)
    txn.put(key, default, db=tables.collections)
