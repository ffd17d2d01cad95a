"""The named databases of one LMDB environment, and the version of their format.

The page "Store format" of the documentation tells their keys and records.
"""

from __future__ import annotations

from typing import Any, Final, Self

import lmdb

FORMAT_VERSION: Final = 4
"""Raised whenever a key or record changes so that older code would misread it."""

# Keys in the database "meta".
META_FORMAT: Final = b"format"
META_DATABASE_ID: Final = b"id"
META_SOURCE_ID: Final = b"source"
META_CLOCK: Final = b"clock"
META_LAST_COLLECTION: Final = b"last collection"
META_LAST_REMOTE: Final = b"last remote"
META_SEQUENCE_FLOOR: Final = b"sequence floor"

DEFAULT_COLLECTION: Final = 1
"""The number of the collection that every database has."""


META_COUNTERS: Final = (META_LAST_COLLECTION, META_LAST_REMOTE, META_SEQUENCE_FLOOR)


def counter(raw: lmdb.Transaction[Any], meta: lmdb._Database, key: bytes) -> int:
    """The value of a counter in "meta"; opening checks that all are there."""
    return int.from_bytes(raw.get(key, b"", meta), "big")


def next_number(raw: lmdb.Transaction[Any], meta: lmdb._Database, key: bytes) -> int:
    """Count on: what a counter in "meta" never gave before."""
    number = counter(raw, meta, key) + 1
    raw.put(key, number.to_bytes(8, "big"), db=meta)
    return number


class Tables:
    """Handles of the named databases; each name is the attribute's."""

    __slots__ = (
        "base_ends",
        "bases",
        "blob_uses",
        "changes",
        "collections",
        "conflicts",
        "documents",
        "dropped",
        "expirations",
        "expiring",
        "forgotten",
        "known_revisions",
        "local_checkpoints",
        "marks",
        "merges",
        "meta",
        "passed",
        "peer_checkpoints",
        "peers_at",
        "remotes",
        "uses",
    )

    meta: lmdb._Database
    collections: lmdb._Database
    documents: lmdb._Database
    changes: lmdb._Database
    conflicts: lmdb._Database
    merges: lmdb._Database
    bases: lmdb._Database
    base_ends: lmdb._Database
    marks: lmdb._Database
    passed: lmdb._Database
    blob_uses: lmdb._Database
    dropped: lmdb._Database
    expirations: lmdb._Database
    expiring: lmdb._Database
    remotes: lmdb._Database
    known_revisions: lmdb._Database
    forgotten: lmdb._Database
    peers_at: lmdb._Database
    local_checkpoints: lmdb._Database
    peer_checkpoints: lmdb._Database
    uses: lmdb._Database

    def bytes_used(self, txn: lmdb.Transaction[Any]) -> int:
        """The pages of all named databases, and of the one that lists them, in bytes.

        Unlike the length of the file it shrinks when something is deleted.
        """
        pages = 0
        for database in (None, *(getattr(self, name) for name in self.__slots__)):
            stat = txn.stat() if database is None else txn.stat(database)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * stat["psize"]

    @classmethod
    def open(cls, env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> Self:
        """Open all, creating those that do not exist yet."""
        tables = cls()
        for name in cls.__slots__:
            setattr(tables, name, env.open_db(name.encode(), txn=txn))
        return tables
