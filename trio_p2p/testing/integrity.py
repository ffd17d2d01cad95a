"""Whether what a store holds agrees with itself: for tests that crash it, damage it or explore it.

The tables tell some things twice, as the page "Store format" of the documentation says; here each
is read whole and held against the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import lmdb

from trio_p2p import limits
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model import blob
from trio_p2p.model.codec import check_body
from trio_p2p.model.document import EMPTY_BODY, Stored
from trio_p2p.store import blob_uses, checkpoints, keys, recent, records, remotes, schema
from trio_p2p.store.blob_files import BlobFiles
from trio_p2p.store.engine import Engine
from trio_p2p.store.records import CollectionState
from trio_p2p.store.transaction import ReadTransaction

_SHA1_BYTES = 20

Name = tuple[int, DocumentID]
"""A document: the number of its collection, and its ID."""


def check_store(engine: Engine) -> None:
    """Read everything in an open store.

    Raises: AssertionError for what does not agree; StoreCorruptError for what cannot be read.
    """
    with engine.read() as txn:
        _Check(txn, dict(engine.collections), engine.blob_files).all()


class _Check:
    """One check of one snapshot."""

    def __init__(
        self,
        txn: ReadTransaction,
        published: dict[int, CollectionState],
        blob_files: BlobFiles,
    ) -> None:
        self._txn = txn
        self._published = published
        self._blob_files = blob_files
        self._documents = dict(self._read_documents())
        self._dropped = {keys.read_collection(key)[0] for key, _ in self._rows("dropped")}
        self._remotes = {
            keys.read_number(entry.content)[0] for entry in recent.entries(txn, remotes.REMOTES)
        }

    def all(self) -> None:
        self._check_collections()
        self._check_changes()
        self._check_revisions()
        self._check_expirations()
        self._check_conflicts()
        self._check_bases()
        self._check_blobs()
        self._check_peers()
        self._check_counters()

    def _rows(self, table: str) -> Iterator[tuple[memoryview, memoryview]]:
        handle: lmdb._Database = getattr(self._txn.tables, table)
        return iter(self._txn.raw.cursor(handle))

    def _read_documents(self) -> Iterator[tuple[Name, Stored]]:
        for key, value in self._rows("documents"):
            yield _name(key), records.unpack_revision(value, key)

    def _check_collections(self) -> None:
        """The counters are those in memory, and count what is there."""
        found = {
            keys.read_collection(key)[0]: records.unpack_collection(bytes(value), bytes(key))
            for key, value in self._rows("collections")
        }
        assert found == self._published, (found, self._published)
        assert schema.DEFAULT_COLLECTION in found
        assert not self._dropped & found.keys(), (self._dropped, found)
        live = Counter(
            number for (number, _), (revision, _) in self._documents.items() if not revision.deleted
        )
        for number, state in found.items():
            assert state.count == live[number], (state, live[number])
        for number, _ in self._documents:
            assert number in found or number in self._dropped, number
        names = [state.full_name for state in found.values()]
        assert len(set(names)) == len(names), names

    def _check_changes(self) -> None:
        """Each document stands there once, as it is, under a sequence that was given."""
        seen = set()
        for key, value in self._rows("changes"):
            number, sequence = keys.read_change(key)
            row = records.unpack_change(Sequence(sequence), value, key)
            name = number, row.document_id
            if number in self._dropped:
                continue
            assert name not in seen, name
            seen.add(name)
            revision, stored_under = self._documents[name]
            assert (stored_under, revision.id, revision.deleted, len(revision.body)) == (
                row.sequence,
                row.revision_id,
                row.deleted,
                row.body_bytes,
            ), (name, revision, stored_under, row)
            assert 0 < sequence <= self._published[number].last_sequence, row
        missing = {name for name in self._documents if name[0] not in self._dropped} - seen
        assert not missing, missing

    def _check_revisions(self) -> None:
        clock = schema.counter(self._txn.raw, self._txn.tables.meta, schema.META_CLOCK)
        for name, (revision, _) in self._documents.items():
            assert max(version.time for version in revision.vector) <= clock, (name, revision)
            if revision.deleted:
                assert revision.body == EMPTY_BODY, name
            check_body(revision.body)

    def _check_expirations(self) -> None:
        """Both tables tell the same, and only of documents that are there."""
        by_name = {
            _name(key): keys.read_number(value)[0] for key, value in self._rows("expirations")
        }
        by_time = [keys.read_expiring(key) for key, _ in self._rows("expiring")]
        assert len(by_name) == len(by_time)
        assert by_name == {(number, name): when for when, number, name in by_time}
        for name in by_name:
            assert name in self._documents or name[0] in self._dropped, name

    def _check_conflicts(self) -> None:
        for key, value in self._rows("conflicts"):
            number, name = keys.read_collection(key[:4])[0], keys.read_revision(bytes(key))
            revision, sequence = records.unpack_revision(value, key)
            assert keys.revision(number, name, revision.version) == key
            assert sequence == 0
            assert (number, name) in self._documents or number in self._dropped, name

    def _check_bases(self) -> None:
        """The current revision includes each; what ended those that marks need is told twice."""
        ends = {bytes(key): bytes(value) for key, value in self._rows("base_ends")}
        told = {}
        counts: Counter[Name] = Counter()
        for key, value in self._rows("bases"):
            number, (name, until) = keys.read_collection(key[:4])[0], keys.read_base(key)
            revision, sequence = records.unpack_revision(value, key)
            prefix = keys.of_document(number, name)
            assert keys.base(prefix, revision.version.to_bytes(), until) == key
            assert not revision.deleted, name
            if until:
                assert sequence < until, (name, sequence, until)
                told[keys.change(number, until)] = name.encode()
            if number in self._dropped:
                continue
            counts[number, name] += 1
            current, stored_under = self._documents[number, name]
            assert current.has(revision.id), (name, revision, current)
            assert current.version != revision.version, (name, revision)
            assert until <= stored_under, (name, until, stored_under)
        assert {key: name for key, name in ends.items() if self._is_kept(key)} == {
            key: name for key, name in told.items() if self._is_kept(key)
        }
        assert all(count <= limits.BASES_PER_DOCUMENT_MAX for count in counts.values()), counts

    def _is_kept(self, key: bytes) -> bool:
        """Whether the key is of a collection that is not being erased."""
        return keys.read_collection(key[:4])[0] not in self._dropped

    def _check_blobs(self) -> None:
        """Each revision that names a blob has a row for that, and the file is there, whole."""
        uses, digests = set(), set()
        for table, place in (
            ("documents", blob_uses.CURRENT),
            ("conflicts", blob_uses.CONFLICTING),
            ("bases", blob_uses.KEPT),
        ):
            for key, value in self._rows(table):
                for sha1 in blob.digests(records.unpack_revision(value, key).revision.body):
                    assert records.may_name_blobs(value), bytes(key)
                    uses.add(keys.blob_use(sha1, place, bytes(key)))
                    digests.add(sha1)
        rows = {bytes(key) for key, _ in self._rows("blob_uses")}
        places = (blob_uses.CURRENT, blob_uses.CONFLICTING, blob_uses.KEPT)
        assert {row for row in rows if row[_SHA1_BYTES : _SHA1_BYTES + 1] in places} == uses
        for sha1 in digests:
            content = self._blob_files.path(sha1).read_bytes()
            assert hashlib.sha1(content, usedforsecurity=False).digest() == sha1, sha1.hex()

    def _check_peers(self) -> None:
        forgotten = {keys.read_number(key)[0] for key, _ in self._rows("forgotten")}
        assert not forgotten & self._remotes, (forgotten, self._remotes)
        for key, value in self._rows("known_revisions"):
            remote = keys.read_remote(key)
            assert remote in self._remotes | forgotten, remote
            records.unpack_revision_id(bytes(value))
        uses = {bytes(key): bytes(value) for key, value in self._rows("uses")}
        bounded = (checkpoints.LOCAL, checkpoints.PEERS, remotes.REMOTES, remotes.PEERS_AT)
        told = {
            keys.use(table.sign, entry.use): entry.key
            for table in bounded
            for entry in recent.entries(self._txn, table)
        }
        assert uses == told
        marks = {bytes(key) for key, _ in self._rows("marks")}
        for entry in recent.entries(self._txn, checkpoints.PEERS):
            _, number, reached, _ = records.unpack_peer_checkpoint(entry.content)
            if reached and number not in self._dropped:
                mark = keys.mark(number, reached, entry.use)
                assert mark in marks, (entry.key, number, reached)
                marks.remove(mark)
        assert not any(map(self._is_kept, marks)), marks

    def _check_counters(self) -> None:
        """No number that was given is given again."""
        raw, meta = self._txn.raw, self._txn.tables.meta
        collections = {*self._published, *self._dropped}
        assert max(collections) <= schema.counter(raw, meta, schema.META_LAST_COLLECTION)
        assert len(self._remotes) == raw.stat(self._txn.tables.remotes)["entries"]
        last_remote = schema.counter(raw, meta, schema.META_LAST_REMOTE)
        assert max(self._remotes, default=0) <= last_remote


def _name(key: memoryview) -> Name:
    return keys.read_collection(key[:4])[0], keys.read_document(key)
