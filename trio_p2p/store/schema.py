"""The named databases of one LMDB environment, and the version of their format.

The page "Store format" of the documentation tells their keys and records.
"""

from __future__ import annotations

from typing import Final, Self

import lmdb

FORMAT_VERSION: Final = 1
"""Raised whenever a key or record changes so that older code would misread it."""

# Keys in the database "meta".
META_FORMAT: Final = b"format"
META_DATABASE_ID: Final = b"id"
META_SOURCE_ID: Final = b"source"
META_CLOCK: Final = b"clock"

DEFAULT_COLLECTION: Final = 1
"""The number of the collection that every database has."""


class Tables:
    """Handles of the named databases; each name is the attribute's."""

    __slots__ = (
        "changes",
        "checkpoint_uses",
        "collections",
        "conflicts",
        "documents",
        "known",
        "local_checkpoints",
        "meta",
        "peer_checkpoints",
        "peers_at",
        "remotes",
    )

    meta: lmdb._Database
    collections: lmdb._Database
    documents: lmdb._Database
    changes: lmdb._Database
    conflicts: lmdb._Database
    remotes: lmdb._Database
    known: lmdb._Database
    peers_at: lmdb._Database
    local_checkpoints: lmdb._Database
    peer_checkpoints: lmdb._Database
    checkpoint_uses: lmdb._Database

    @classmethod
    def open(cls, env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> Self:
        """Open all, creating those that do not exist yet."""
        tables = cls()
        for name in cls.__slots__:
            setattr(tables, name, env.open_db(name.encode(), txn=txn))
        return tables
