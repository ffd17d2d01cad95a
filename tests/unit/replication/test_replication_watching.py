"""Reading what a replicator did."""

from trio_p2p.ids import DocumentID
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.link import Pulse
from trio_p2p.replication.status import Direction
from trio_p2p.replication.watching import DocumentReplications


class Notes:
    name, scope, full_name = "notes", "_default", "notes"


def store(journal, *document_ids):
    for document_id in document_ids:
        journal.stored(Direction.PULL, Notes(), DocumentID(document_id), False)


async def test_who_reads_late_or_slowly_is_told_how_many_events_were_missed():
    journal = Journal(events_max=3)
    events = DocumentReplications(journal, Pulse(), lambda: True)
    store(journal, *"abcde")
    assert [(await anext(events)).document_id for _ in range(2)] == ["c", "d"]
    assert events.missed == 2
    store(journal, *"fgh")
    assert [event.document_id async for event in events] == ["f", "g", "h"]
    assert events.missed == 3
