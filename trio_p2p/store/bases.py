"""Bases: old revisions that are kept because a peer has them.

That peer can be sent the difference to a base instead of a whole body; and if it edited the
document too, the resolver learns what both edits started from. A revision that is overwritten is
kept if a peer has it, which is told by one of three things:

- It is the latest revision that the peer is *known* to have. An active peer writes that down for
  every document.
- The peer's *mark*, which is how far it says to have come in the change feed, lies between the
  revision's sequence and the one that took its place. That is all a passive peer knows of those who
  pull from it, and enough: a record for every document and client would outgrow the documents.
- It was written elsewhere and is overwritten here: whoever *pushed* it has it. Until a peer's mark
  comes to the revision that took its place, the latest such revision of a document is kept.

A base goes once none holds any more and no revision that waits for a resolver includes it. A
tombstone keeps none: there are no differences to one, and deleting is to make room.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from trio_p2p import limits
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.document import Revision
from trio_p2p.model.version import RevisionID, Version
from trio_p2p.store import blob_uses, conflicts, keys, records
from trio_p2p.store.transaction import PeerFacts, ReadTransaction, WriteTransaction

_SEQUENCE_MAX: Final = Sequence(2**64 - 1)
# Reached by any sequence: no mark is needed for a base that was never current here.
_NO_MARK: Final = Sequence(0)
# Where the author stands in the bytes of a version.
_SOURCE_AT: Final = 8


class _Base(NamedTuple):
    """What is told of a base without its body; `until` took its place, 0 where no mark needs it."""

    key: bytes
    until: Sequence
    sequence: Sequence
    revision_id: bytes


# --- Reading -------------------------------------------------------------------------------------


def get(
    txn: ReadTransaction,
    collection: int,
    document_id: DocumentID,
    revision_id: RevisionID,
    *,
    with_body: bool = True,
) -> Revision | None:
    """A revision of a document that is here with its body, whether it is current, waits for a
    resolver, or was kept; None for any other. The body is not read if it is not wanted.
    """
    packed = records.pack_revision_id(revision_id)
    document_key = keys.document(collection, document_id)
    current = txn.raw.get(document_key, None, txn.tables.documents)
    if current is not None and records.current_id(current) == packed:
        return records.unpack_revision(current, document_key, with_body=with_body).revision
    version = revision_id if isinstance(revision_id, Version) else revision_id.as_version()
    prefix = keys.revision(collection, document_id, version)
    for table in (txn.tables.conflicts, txn.tables.bases):
        for key, raw in txn.rows(table, prefix):
            if records.current_id(raw) == packed:
                return records.unpack_revision(raw, key, with_body=with_body).revision
    return None


def common(
    txn: ReadTransaction,
    collection: int,
    document_id: DocumentID,
    first: Revision,
    second: Revision,
) -> Revision | None:
    """The newest base that both revisions include, if any was kept."""
    prefix = keys.of_document(collection, document_id)
    for key, raw in reversed(list(txn.rows(txn.tables.bases, prefix))):
        head = records.unpack_revision(raw, key, with_body=False).revision
        if first.has(head.id) and second.has(head.id):
            return records.unpack_revision(raw, key).revision
    return None


# --- Keeping -------------------------------------------------------------------------------------


def keep(
    txn: WriteTransaction,
    document_key: bytes,
    record: memoryview,
    *,
    since: Sequence,
    until: Sequence,
    by: Version,
) -> None:
    """Keep the revision of a record, which another is about to replace, if a peer has it.

    It was stored under the sequence `since`; the other one has the sequence `until` and the version
    `by`. The record is not used once this wrote anything.
    """
    collection = keys.read_collection(document_key[:4])[0]
    peers = txn.peers
    if peers is None or peers.collection != collection:
        peers = txn.peers = _look_for_peers(txn, collection)
    is_marked = since <= peers.last_mark and _is_marked(txn, collection, since, until)
    prefix = keys.of_document_at(document_key)
    version = records.current_version(record)
    ends = is_marked
    if not is_marked and not (
        peers.is_any_known and _is_known(txn, prefix, records.current_id(record))
    ):
        is_pushed = by.source == txn.identity.source and _is_from_elsewhere(txn, version)
        if not (is_pushed and peers.is_any_served and peers.last_mark < until):
            return
        _drop_unclaimed(txn, prefix)
        ends = True
    if version == by.to_bytes():
        # A conflict was settled for it: it stays, with a longer vector.
        return
    key = keys.base(prefix, version, until if ends else _NO_MARK)
    _put(txn, prefix, key, records.under_key(record, key))
    if ends:
        txn.raw.put(keys.change(collection, until), document_key[4:], db=txn.tables.base_ends)


def keep_merged(
    txn: WriteTransaction, collection: int, document_id: DocumentID, revision: Revision
) -> None:
    """Keep a revision that waited for a resolver, after the outcome was stored, if a peer has it.

    That peer may go on editing it, until it learns of the outcome.
    """
    document_key = keys.document(collection, document_id)
    prefix = keys.of_document_at(document_key)
    current = txn.raw.get(document_key, None, txn.tables.documents)
    if current is None or revision.deleted or records.unpack_place(current, document_key)[0]:
        return
    version = revision.version.to_bytes()
    if records.current_version(current) == version:
        return
    if _is_known(txn, prefix, records.pack_revision_id(revision.id)):
        key = keys.base(prefix, version, _NO_MARK)
        _put(txn, prefix, key, records.pack_revision(revision, Sequence(0), key))


def _put(txn: WriteTransaction, prefix: bytes, key: bytes, record: bytes) -> None:
    """Store a base, and drop the oldest ones of its document if there are too many."""
    before = _bases(txn, prefix)
    for base in before[: max(len(before) + 1 - limits.BASES_PER_DOCUMENT_MAX, 0)]:
        _drop(txn, base)
    txn.raw.put(key, record, db=txn.tables.bases)
    txn.note_growth(len(record))
    if records.may_name_blobs(record):
        body = records.unpack_revision(memoryview(record), key).revision.body
        blob_uses.note(txn, blob_uses.KEPT, key, body)


# --- Dropping ------------------------------------------------------------------------------------


def drop_unneeded(txn: WriteTransaction, collection: int, document_id: DocumentID) -> None:
    """Drop the bases of a document that nothing needs any more."""
    found = _bases(txn, keys.of_document(collection, document_id))
    if found:
        _drop_unneeded(txn, collection, document_id, found)


def _drop_unneeded(
    txn: WriteTransaction, collection: int, document_id: DocumentID, found: list[_Base]
) -> None:
    waiting = conflicts.heads(txn, collection, document_id)
    prefix = keys.of_document(collection, document_id)
    for base in found:
        if not _is_needed(txn, prefix, base, waiting):
            _drop(txn, base)


def drop_if_unneeded(
    txn: WriteTransaction, collection: int, document_id: DocumentID, revision_id: bytes
) -> None:
    """Drop the base of a revision ID as it is packed, if there is one and nothing needs it."""
    found = records.unpack_revision_id(revision_id)
    version = found if isinstance(found, Version) else found.as_version()
    of_version = _bases(txn, keys.revision(collection, document_id, version))
    if of_version:
        _drop_unneeded(txn, collection, document_id, of_version)


def drop_all(txn: WriteTransaction, collection: int, document_id: DocumentID) -> None:
    """Drop all bases of a document."""
    for base in _bases(txn, keys.of_document(collection, document_id)):
        _drop(txn, base)


def drop_some_unneeded(txn: WriteTransaction, after: bytes, limit: int) -> bytes | None:
    """Look at the next bases behind a key, and drop those that nothing needs.

    Returns the last key looked at, None if there were no more.
    """
    cursor = txn.raw.cursor(txn.tables.bases)
    found: list[tuple[int, DocumentID]] = []
    last = None
    if cursor.set_range(after + b"\0"):
        for key in cursor.iternext(values=False):
            last = bytes(key)
            found.append((keys.read_collection(key[:4])[0], keys.read_base(key)[0]))
            if len(found) == limit:
                break
    for collection, document_id in dict.fromkeys(found):
        drop_unneeded(txn, collection, document_id)
    return last


def erase(txn: WriteTransaction, collection: int, limit: int) -> int:
    """Remove bases of a collection, at most `limit`; returns how many."""
    rows = txn.rows(txn.tables.bases, keys.collection(collection))
    found = [_base(key, raw) for (key, raw), _ in zip(rows, range(limit), strict=False)]
    for base in found:
        _drop(txn, base)
    return len(found)


def _drop_unclaimed(txn: WriteTransaction, prefix: bytes) -> None:
    """Drop the bases of a document that were kept only because they were pushed."""
    found = _bases(txn, prefix)
    if found:
        collection = keys.read_collection(prefix[:4])[0]
        document_id, _ = keys.read_base(memoryview(found[0].key))
        waiting = conflicts.heads(txn, collection, document_id)
        for base in found:
            if not _is_claimed(txn, prefix, base, waiting):
                _drop(txn, base)


def _drop(txn: WriteTransaction, base: _Base) -> None:
    raw = txn.raw.get(base.key, None, txn.tables.bases)
    assert raw is not None, base
    blob_uses.forget(txn, blob_uses.KEPT, base.key, raw)
    txn.raw.delete(base.key, b"", txn.tables.bases)
    if base.until:
        collection = keys.read_collection(base.key[:4])[0]
        txn.raw.delete(keys.change(collection, base.until), b"", txn.tables.base_ends)


# --- Marks ---------------------------------------------------------------------------------------


def add_mark(txn: WriteTransaction, collection: int, sequence: int, use: int) -> None:
    """A peer says to have come to a sequence; `use` tells its mark from others."""
    txn.raw.put(keys.mark(collection, sequence, use), b"", db=txn.tables.marks)
    txn.peers = None


def remove_mark(txn: WriteTransaction, collection: int, sequence: int, use: int) -> None:
    """Forget a mark. `note_passed` is to be called then."""
    txn.raw.delete(keys.mark(collection, sequence, use), b"", txn.tables.marks)


def note_passed(
    txn: WriteTransaction, collection: int, after: int, upto: int = _SEQUENCE_MAX
) -> bool:
    """A mark came, was moved from one sequence to another, or removed: drop what nothing needs now.

    Of much only a part is dropped here; returns whether anything is left for `drop_passed`.
    """
    left = _drop_ended(txn, collection, after + 1, upto, limits.TIDY_RECORDS)
    if left is None:
        return False
    key = keys.change(collection, left)
    noted = txn.raw.get(key, None, txn.tables.passed)
    upto = upto if noted is None else max(upto, keys.read_number(noted)[0])
    txn.raw.put(key, keys.number(upto), db=txn.tables.passed)
    return True


def is_any_passed(txn: ReadTransaction) -> bool:
    """Whether there is anything for `drop_passed`."""
    return txn.raw.cursor(txn.tables.passed).first()


def drop_passed(txn: WriteTransaction, limit: int) -> None:
    """Go on with what `note_passed` left: look at about `limit` bases."""
    noted = txn.raw.cursor(txn.tables.passed)
    if not noted.first():
        return
    collection, first = keys.read_change(noted.key())
    upto = keys.read_number(noted.value())[0]
    noted.delete()
    left = _drop_ended(txn, collection, first, upto, limit)
    if left is not None:
        txn.raw.put(keys.change(collection, left), keys.number(upto), db=txn.tables.passed)


def _drop_ended(
    txn: WriteTransaction, collection: int, first: int, last: int, limit: int
) -> int | None:
    """Drop the unneeded among the bases that sequences from `first` to `last` took the place of.

    Looks at `limit` of them; returns where to go on, None if there is nothing more.
    """
    found: list[DocumentID] = []
    left = None
    cursor = txn.raw.cursor(txn.tables.base_ends)
    if cursor.set_range(keys.change(collection, first)):
        for key, name in cursor:
            number, sequence = keys.read_change(key)
            if number != collection or sequence > last:
                break
            if len(found) == limit:
                left = sequence
                break
            found.append(DocumentID(str(name, "utf-8")))
    for document_id in dict.fromkeys(found):
        drop_unneeded(txn, collection, document_id)
    return left


# --- Who needs what ------------------------------------------------------------------------------


def _look_for_peers(txn: WriteTransaction, collection: int) -> PeerFacts:
    """What makes it needless to ask about single revisions, where no peer has any."""
    marks = txn.raw.cursor(txn.tables.marks)
    last_mark = 0
    behind = marks.set_range(keys.collection(collection + 1))
    if marks.prev() if behind else marks.last():
        number, sequence = keys.read_mark(marks.key())
        last_mark = sequence if number == collection else 0
    known = txn.raw.cursor(txn.tables.known_revisions)
    served = txn.raw.cursor(txn.tables.peer_checkpoints)
    return PeerFacts(collection, known.first(), served.first(), last_mark)


def _is_needed(txn: WriteTransaction, prefix: bytes, base: _Base, waiting: list[Revision]) -> bool:
    if base.until and _is_from_elsewhere(txn, base.key[len(prefix) :]):
        collection = keys.read_collection(prefix[:4])[0]
        if not _is_marked(txn, collection, base.until, _SEQUENCE_MAX):
            return True
    return _is_claimed(txn, prefix, base, waiting)


def _is_from_elsewhere(txn: WriteTransaction, version: bytes) -> bool:
    """Whether another database wrote a version: its bytes, which others may follow."""
    source = txn.identity.source
    return version[_SOURCE_AT : _SOURCE_AT + len(source)] != source


def _is_claimed(txn: ReadTransaction, prefix: bytes, base: _Base, waiting: list[Revision]) -> bool:
    collection = keys.read_collection(prefix[:4])[0]
    if base.until and _is_marked(txn, collection, base.sequence, base.until):
        return True
    if _is_known(txn, prefix, base.revision_id):
        return True
    revision_id = records.unpack_revision_id(base.revision_id)
    return any(revision.has(revision_id) for revision in waiting)


def _is_known(txn: ReadTransaction, prefix: bytes, revision_id: bytes) -> bool:
    """Whether this is the latest revision that any peer is known to have."""
    # Written out, since every put over a revision comes here.
    cursor = txn.raw.cursor(txn.tables.known_revisions)
    if cursor.set_range(prefix):
        length = len(prefix)
        for key, value in cursor:
            if key[:length] != prefix:
                break
            if value == revision_id:
                return True
    return False


def _is_marked(txn: ReadTransaction, collection: int, sequence: int, until: int) -> bool:
    """Whether any peer came to a sequence, or behind it, but not to the one that took its place."""
    cursor = txn.raw.cursor(txn.tables.marks)
    start = keys.change(collection, sequence)
    return cursor.set_range(start) and bytes(cursor.key()) < keys.change(collection, until)


def _bases(txn: ReadTransaction, prefix: bytes) -> list[_Base]:
    """The bases whose keys begin with a prefix; of a document, in order of their versions."""
    return [_base(key, raw) for key, raw in txn.rows(txn.tables.bases, prefix)]


def _base(key: memoryview, raw: memoryview) -> _Base:
    _, until = keys.read_base(key)
    _, sequence = records.unpack_place(raw, key)
    return _Base(bytes(key), until, sequence, records.current_id(raw))
