"""The change feed: every document once, under the sequence of its latest change."""

from __future__ import annotations

from itertools import islice

from trio_p2p.ids import Sequence
from trio_p2p.store import keys, records
from trio_p2p.store.records import ChangeRow
from trio_p2p.store.transaction import ReadTransaction

__all__ = ["ChangeRow", "read_since"]


def read_since(
    txn: ReadTransaction, collection: int, after: Sequence, limit: int
) -> list[ChangeRow]:
    """The next changes with a sequence greater than `after`, ascending, at most `limit`."""
    rows: list[ChangeRow] = []
    cursor = txn.raw.cursor(txn.tables.changes)
    if not cursor.set_range(keys.behind_change(collection, after)):
        return rows
    for key, value in islice(cursor, limit):
        number, sequence = keys.read_change(key)
        if number != collection:
            break
        rows.append(records.unpack_change(sequence, value))
    return rows
