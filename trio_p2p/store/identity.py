"""Who a database is. Two that share an identity lose edits silently, so a copy needs its own."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, Final

import lmdb

from trio_p2p.ids import DatabaseID, SourceID
from trio_p2p.store import blob_uses, files, schema
from trio_p2p.store.records import Identity
from trio_p2p.store.schema import Tables

_RENEW_FILE: Final = "renew"
"""In a directory whose database is to take a new identity when it is opened."""


def renew(raw: lmdb.Transaction[Any], tables: Tables) -> Identity:
    """Take a new identity, and forget what belongs to the old one: checkpoints, peers and bases."""
    identity = Identity(DatabaseID(uuid.uuid4()), SourceID(os.urandom(16)))
    raw.put(schema.META_DATABASE_ID, identity.id.bytes, db=tables.meta)
    raw.put(schema.META_SOURCE_ID, identity.source, db=tables.meta)
    blob_uses.forget_all(raw, tables, blob_uses.KEPT)
    for table in (
        tables.base_ends,
        tables.bases,
        tables.forgotten,
        tables.known_revisions,
        tables.local_checkpoints,
        tables.marks,
        tables.passed,
        tables.peer_checkpoints,
        tables.peers_at,
        tables.remotes,
        tables.uses,
    ):
        raw.drop(table, delete=False)
    return identity


def mark(directory: Path) -> None:
    """Let the database take a new identity at its next opening."""
    files.write_file(directory / _RENEW_FILE, b"")


def is_marked(directory: Path) -> bool:
    """Whether it is to take a new identity."""
    return (directory / _RENEW_FILE).exists()


def unmark(directory: Path) -> None:
    """It took one, durably."""
    files.remove_file(directory / _RENEW_FILE)
