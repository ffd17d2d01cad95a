"""A witness of everything that the stores of a test make current."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

from trio_p2p.ids import DocumentID, Sequence, SourceID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.store import documents
from trio_p2p.store.transaction import WriteTransaction


class Witness:
    """Sees every revision that any store makes current, and checks it.

    A trivial merge adds the loser to the vector of one peer's copy alone, so the revision that all
    peers end with need not name every write that it was decided against. The witness can tell.
    """

    def __init__(self) -> None:
        self._vectors: dict[DocumentID, list[VersionVector]] = defaultdict(list)
        self._last: dict[SourceID, int] = defaultdict(int)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what is stored in this block."""
        put_revision = documents.put_revision

        def put(
            txn: WriteTransaction, number: int, name: DocumentID, revision: Revision
        ) -> Sequence:
            sequence = put_revision(txn, number, name, revision)
            assert revision.version == revision.vector.greatest(), revision
            assert sequence > self._last[txn.source], (sequence, self._last[txn.source])
            self._last[txn.source] = sequence
            self._vectors[name].append(revision.vector)
            return sequence

        with mock.patch.object(documents, "put_revision", put):
            yield

    def covers(self, document_id: DocumentID, held: Iterable[Revision], version: Version) -> bool:
        """Whether the revisions include the version, or were made or chosen over it."""
        found = [revision.vector for revision in held]
        waiting = self._vectors[document_id]
        latest: dict[SourceID, int] = {}
        while found:
            for time, source in (version for vector in found for version in vector):
                latest[source] = max(time, latest.get(source, 0))
            found = [v for v in waiting if v.current.time <= latest.get(v.current.source, 0)]
            waiting = [v for v in waiting if v.current.time > latest.get(v.current.source, 0)]
        return version.time <= latest.get(version.source, 0)
