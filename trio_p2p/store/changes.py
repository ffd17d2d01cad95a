"""The change feed: every document once, under the sequence of its latest change."""

from __future__ import annotations

from trio_p2p.ids import Sequence
from trio_p2p.store import expirations, keys, records
from trio_p2p.store.records import ChangeRow
from trio_p2p.store.transaction import ReadTransaction

__all__ = ["ChangeRow", "read_since"]


def read_since(
    txn: ReadTransaction, collection: int, after: Sequence, limit: int
) -> list[ChangeRow]:
    """The next changes with a sequence greater than `after`, ascending, at most `limit`.

    Documents that are due to be purged are left out, so that no peer is offered one.
    """
    rows: list[ChangeRow] = []
    cursor = txn.raw.cursor(txn.tables.changes)
    if not cursor.set_range(keys.behind_change(collection, after)):
        return rows
    some_due = expirations.is_any_due(txn)
    for key, value in cursor:
        number, sequence = keys.read_change(key)
        if number != collection or len(rows) == limit:
            break
        row = records.unpack_change(sequence, value)
        if not (some_due and expirations.is_due(txn, collection, row.document_id)):
            rows.append(row)
    return rows
