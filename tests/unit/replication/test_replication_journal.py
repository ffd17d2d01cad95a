"""The journal of one replication."""

from trio_p2p import limits
from trio_p2p.errors import InvalidDocumentError
from trio_p2p.ids import DocumentID
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.status import Direction


class Notes:
    name, scope, full_name = "notes", "_default", "notes"


def test_a_failure_is_remembered_however_many_documents_follow_it():
    journal = Journal()
    refused = InvalidDocumentError("refused")
    journal.failed(Direction.PULL, Notes(), DocumentID("bad"), refused)
    for number in range(limits.DOCUMENT_EVENTS_MAX):
        journal.stored(Direction.PULL, Notes(), DocumentID(f"good{number}"), False)
    assert [(event.document_id, event.error) for event in journal.failures] == [("bad", refused)]
    assert len(journal.events) == limits.DOCUMENT_EVENTS_MAX
