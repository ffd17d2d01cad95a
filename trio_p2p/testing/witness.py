"""A witness of everything that the stores of a test make current."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

from trio_p2p.ids import DocumentID, Sequence, SourceID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.store import documents
from trio_p2p.store.transaction import WriteTransaction
from trio_p2p.testing.nodes import Name


class Witness:
    """Sees every revision that any store makes current, and checks it.

    A trivial merge adds the loser to the vector of one peer's copy alone, so the revision that all
    peers end with need not name every write that it was decided against. The witness can tell.
    """

    def __init__(self) -> None:
        self._vectors: dict[Name, list[VersionVector]] = defaultdict(list)
        self._last: dict[tuple[SourceID, int], int] = defaultdict(int)
        self.on_merge: Callable[[], None] = lambda: None
        """Called for each merge revision that is stored."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what is stored in this block."""
        put_revision = documents.put_revision

        def put(
            txn: WriteTransaction, number: int, document_id: DocumentID, revision: Revision
        ) -> Sequence:
            sequence = put_revision(txn, number, document_id, revision)
            assert revision.version == revision.vector.greatest(), revision
            last = self._last[txn.source, number]
            assert sequence > last, (sequence, last)
            self._last[txn.source, number] = sequence
            name = Name(txn.collection(number).full_name, document_id)
            self._vectors[name].append(revision.vector)
            if revision.vector.merged:
                self.on_merge()
            return sequence

        with mock.patch.object(documents, "put_revision", put):
            yield

    def forget_sequences(self, source: SourceID) -> None:
        """The database of this author was rolled back: it gives some sequences again."""
        for key in [key for key in self._last if key[0] == source]:
            del self._last[key]

    def covers(self, name: Name, held: Iterable[Revision], version: Version) -> bool:
        """Whether the revisions include the version, or were made or chosen over it."""
        found = [revision.vector for revision in held]
        waiting = self._vectors[name]
        latest: dict[SourceID, int] = {}
        while found:
            for time, source in (version for vector in found for version in vector):
                latest[source] = max(time, latest.get(source, 0))
            if version.time <= latest.get(version.source, 0):
                return True
            found = [v for v in waiting if v.current.time <= latest.get(v.current.source, 0)]
            waiting = [v for v in waiting if v.current.time > latest.get(v.current.source, 0)]
        return False
