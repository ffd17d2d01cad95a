"""The change feed: every document once, under the sequence of its latest change."""

from __future__ import annotations

from typing import NamedTuple

from trio_p2p.ids import Sequence
from trio_p2p.store import expirations, keys, records
from trio_p2p.store.records import ChangeRow
from trio_p2p.store.transaction import ReadTransaction

__all__ = ["ChangeRow", "ChangeSlice", "read_since"]


class ChangeSlice(NamedTuple):
    """A part of the feed: what it holds, and the sequence after which the next part begins."""

    rows: list[ChangeRow]
    end: Sequence


def read_since(txn: ReadTransaction, collection: int, after: Sequence, limit: int) -> ChangeSlice:
    """The next `limit` changes with a sequence greater than `after`, ascending.

    Documents that are due to be purged are left out, so that no peer is offered one, but they
    count, lest a slice take long. So there may be more behind one without rows: the feed is read to
    its end when `end` is the collection's last sequence.
    """
    rows: list[ChangeRow] = []
    last = _last_sequence(txn, collection)
    if after >= last:
        return ChangeSlice(rows, after)
    some_due = expirations.is_any_due(txn)
    cursor = txn.raw.cursor(txn.tables.changes)
    if cursor.set_range(keys.behind_change(collection, after)):
        room = limit
        for key, value in cursor:
            number, sequence = keys.read_change(key)
            if number != collection:
                break
            row = records.unpack_change(sequence, value, key)
            if not (some_due and expirations.is_due(txn, collection, row.document_id)):
                rows.append(row)
            room -= 1
            if room == 0:
                return ChangeSlice(rows, sequence)
    # Not that of the last row: the documents of later ones were purged.
    return ChangeSlice(rows, last)


def _last_sequence(txn: ReadTransaction, collection: int) -> Sequence:
    """The last sequence given in a collection, 0 if that was deleted."""
    key = keys.collection(collection)
    raw = txn.raw.get(key, None, txn.tables.collections)
    return Sequence(0) if raw is None else records.unpack_collection(bytes(raw), key).last_sequence
