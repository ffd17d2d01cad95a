"""From one format version to the next: a function each, all run in the transaction of the opening.

A migration changes the data file in place, so what fails leaves the file as it was. Its records are
told by the page "Store format" of the documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import lmdb

from trio_p2p.store import keys, schema
from trio_p2p.store.schema import Tables

Migration = Callable[["lmdb.Transaction[Any]", Tables], None]


def migrate(txn: lmdb.Transaction[Any], tables: Tables, version: int) -> None:
    """Bring a database from a format version of `MIGRATIONS` to the present one."""
    for step in range(version, schema.FORMAT_VERSION):
        MIGRATIONS[step](txn, tables)
    txn.put(schema.META_FORMAT, keys.number(schema.FORMAT_VERSION), db=tables.meta)


def _number_for_good(txn: lmdb.Transaction[Any], tables: Tables) -> None:
    """Numbers came from counting rows; since rows may go, the last ones given are kept."""
    collections = txn.cursor(tables.collections)
    last = keys.read_collection(collections.key())[0] if collections.last() else 0
    remotes = txn.stat(tables.remotes)["entries"]
    txn.put(schema.META_LAST_COLLECTION, keys.number(last), db=tables.meta)
    txn.put(schema.META_LAST_REMOTE, keys.number(remotes), db=tables.meta)
    txn.put(schema.META_SEQUENCE_FLOOR, keys.number(0), db=tables.meta)


MIGRATIONS: Final[Mapping[int, Migration]] = {1: _number_for_good}
"""By the version each starts from."""
