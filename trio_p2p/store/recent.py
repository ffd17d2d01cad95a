"""Tables of bounded size: the entry that was put least recently gives way.

Each record begins with the number of its latest use. The table `uses` lists the entries of all
these tables in the order of their uses, behind the sign of their table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import lmdb

from trio_p2p.store import keys
from trio_p2p.store.schema import Tables
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction

_USE_BYTES: Final = 8


class Bounded(NamedTuple):
    """A table of bounded size: its attribute in `Tables`, and its sign in the table `uses`."""

    name: str
    sign: int

    def handle(self, tables: Tables) -> lmdb._Database:
        """The handle of the table."""
        found: lmdb._Database = getattr(tables, self.name)
        return found


class Entry(NamedTuple):
    """What stands in such a table; `use` is greater the later it was put."""

    key: bytes
    use: int
    content: bytes


def get(txn: ReadTransaction, table: Bounded, key: bytes) -> Entry | None:
    """The entry of a key."""
    raw = txn.raw.get(key, None, table.handle(txn.tables))
    return None if raw is None else _entry(key, raw)


def put(txn: WriteTransaction, table: Bounded, key: bytes, content: bytes) -> int:
    """Put an entry in the place of the one its key had; returns its use."""
    use = _last_use(txn, table) + 1
    old = get(txn, table, key)
    if old is not None:
        txn.raw.delete(keys.use(table.sign, old.use), b"", txn.tables.uses)
    place(txn.raw, txn.tables, table, Entry(key, use, content))
    return use


def place(raw: lmdb.Transaction[Any], tables: Tables, table: Bounded, entry: Entry) -> None:
    """Put an entry with its use, which no other one of its table has."""
    raw.put(entry.key, keys.number(entry.use) + entry.content, db=table.handle(tables))
    raw.put(keys.use(table.sign, entry.use), entry.key, db=tables.uses)


def remove(txn: WriteTransaction, table: Bounded, key: bytes) -> Entry | None:
    """Remove an entry; returns what it was."""
    old = get(txn, table, key)
    if old is not None:
        txn.raw.delete(key, b"", table.handle(txn.tables))
        txn.raw.delete(keys.use(table.sign, old.use), b"", txn.tables.uses)
    return old


def shrink(txn: WriteTransaction, table: Bounded, bytes_max: int) -> Entry | None:
    """Remove the entry that was put least recently, if all take more than this; never the last."""
    stat = txn.raw.stat(table.handle(txn.tables))
    pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    if pages * stat["psize"] <= bytes_max or stat["entries"] < 2:
        return None
    return make_room(txn, table, 0)


def make_room(txn: WriteTransaction, table: Bounded, entries_max: int) -> Entry | None:
    """Remove the entry that was put least recently, if there is no room for another one."""
    if txn.raw.stat(table.handle(txn.tables))["entries"] < entries_max:
        return None
    uses = txn.raw.cursor(txn.tables.uses)
    first = uses.set_range(keys.use(table.sign, 0))
    assert first, (table, "every entry has a use")
    return remove(txn, table, bytes(uses.value()))


def entries(txn: ReadTransaction, table: Bounded) -> Iterator[Entry]:
    """All entries in order of their keys. The table must not change meanwhile."""
    for key, value in txn.raw.cursor(table.handle(txn.tables)):
        yield _entry(bytes(key), value)


def clear(txn: WriteTransaction, table: Bounded) -> None:
    """Remove all entries."""
    uses = txn.raw.cursor(txn.tables.uses)
    while uses.set_range(keys.use(table.sign, 0)) and uses.key()[0] == table.sign:
        uses.delete()
    txn.raw.drop(table.handle(txn.tables), delete=False)


def _entry(key: bytes, raw: memoryview) -> Entry:
    return Entry(key, keys.read_number(raw[:_USE_BYTES])[0], bytes(raw[_USE_BYTES:]))


def _last_use(txn: WriteTransaction, table: Bounded) -> int:
    uses = txn.raw.cursor(txn.tables.uses)
    behind = uses.set_range(keys.use(table.sign + 1, 0))
    found = uses.prev() if behind else uses.last()
    if not found or uses.key()[0] != table.sign:
        return 0
    last: int = keys.read_use(uses.key())
    return last
