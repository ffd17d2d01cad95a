"""The journal of one replication."""

import pytest

from trio_p2p import limits
from trio_p2p.errors import ClockSkewError, InvalidDocumentError, PeerError
from trio_p2p.ids import DocumentID
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.status import (
    Direction,
    DocumentFlags,
    DocumentReplication,
    Progress,
    ReplicatorStatistics,
)

A, B = DocumentID("a"), DocumentID("b")
REFUSED = InvalidDocumentError("refused")


class Notes:
    name, scope, full_name = "notes", "_default", "notes"


NOTES = Notes()


def test_a_failure_is_remembered_however_many_documents_follow_it():
    journal = Journal()
    journal.failed(Direction.PULL, NOTES, DocumentID("bad"), REFUSED)
    for number in range(limits.DOCUMENT_EVENTS_MAX):
        journal.stored(Direction.PULL, NOTES, DocumentID(f"good{number}"), False)
    assert [(event.document_id, event.error) for event in journal.failures] == [("bad", REFUSED)]
    assert len(journal.events) == limits.DOCUMENT_EVENTS_MAX
    assert journal.event_count == limits.DOCUMENT_EVENTS_MAX + 1


def test_every_document_that_went_well_or_ill_is_an_event():
    journal = Journal()
    journal.stored(Direction.PUSH, NOTES, A, False)
    journal.stored(Direction.PULL, NOTES, B, True)
    journal.failed(Direction.PUSH, NOTES, B, REFUSED)
    journal.failed(Direction.PUSH, NOTES, B, REFUSED, deleted=True)
    journal.resolved(NOTES, A, deleted=True)
    assert list(journal.events) == [
        DocumentReplication(Direction.PUSH, NOTES, A),
        DocumentReplication(Direction.PULL, NOTES, B, DocumentFlags.DELETED),
        DocumentReplication(Direction.PUSH, NOTES, B, error=REFUSED),
        DocumentReplication(Direction.PUSH, NOTES, B, DocumentFlags.DELETED, REFUSED),
        DocumentReplication(Direction.PULL, NOTES, A, DocumentFlags.DELETED),
    ]
    assert journal.event_count == 5


@pytest.mark.behaviour("G7")
def test_statistics_count_everything_since_the_beginning():
    journal = Journal()
    for _ in range(2):
        journal.connected()
        journal.moved(100, 7)
    journal.offered(5)
    journal.settled(2)
    journal.stored(Direction.PUSH, NOTES, A, False)
    journal.stored(Direction.PULL, NOTES, B, False)
    journal.stored(Direction.PULL, NOTES, A, True)
    journal.failed(Direction.PULL, NOTES, B, REFUSED)
    journal.resolved(NOTES, A, deleted=False)
    assert journal.statistics() == ReplicatorStatistics(
        documents_pushed=1,
        documents_pulled=3,
        documents_offered=5,
        documents_failed=1,
        conflicts_resolved=1,
        wire_bytes_sent=200,
        wire_bytes_received=14,
        connections=2,
    )


def test_progress_counts_failed_and_unneeded_documents_as_completed():
    journal = Journal()
    journal.offered(5)
    journal.settled(2)
    journal.stored(Direction.PUSH, NOTES, A, False)
    journal.failed(Direction.PUSH, NOTES, B, REFUSED)
    assert journal.progress() == Progress(completed=4, total=5, document_count=1)


def test_what_a_session_left_over_is_counted_once_more_when_it_is_offered_again():
    journal = Journal()
    for left_over in (5, 3, 0):
        journal.connected()
        journal.offered(5)
        journal.settled(5 - left_over)
        completed = journal.progress().completed
        assert journal.progress() == Progress(completed, completed + left_over)
    assert journal.statistics().documents_offered == 15


def test_whoever_has_no_use_for_events_keeps_none_and_counts_all_the_same():
    journal = Journal(events_max=0)
    journal.stored(Direction.PULL, NOTES, A, False)
    journal.failed(Direction.PULL, NOTES, B, REFUSED)
    assert (len(journal.events), len(journal.failures)) == (0, 0)
    statistics = journal.statistics()
    assert (statistics.documents_pulled, statistics.documents_failed) == (1, 1)


def test_a_conflict_that_is_not_resolved_was_settled_when_it_came():
    journal = Journal()
    journal.offered(1)
    journal.settled()
    journal.unresolved(NOTES, A, REFUSED, deleted=False)
    assert journal.progress() == Progress(completed=1, total=1)
    assert [event.error for event in journal.failures] == [REFUSED]


def test_more_is_never_completed_than_known_of():
    journal = Journal()
    journal.stored(Direction.PULL, NOTES, A, False)
    assert journal.progress() == Progress(completed=1, total=1, document_count=1)


def test_whoever_watches_hears_of_every_report_about_documents():
    heard = []
    journal = Journal(on_change=lambda: heard.append(journal.progress()))
    journal.offered(3)
    journal.settled()
    journal.stored(Direction.PULL, NOTES, A, False)
    journal.failed(Direction.PULL, NOTES, B, REFUSED)
    journal.resolved(NOTES, A, deleted=False)
    assert [progress.completed for progress in heard] == [0, 1, 2, 3, 3]


def test_documents_that_wait_for_clocks_to_agree_are_told_until_they_went_well():
    journal = Journal()
    first, second = ClockSkewError("ahead"), ClockSkewError("further ahead")
    assert journal.clock_skew is None
    journal.failed(Direction.PULL, NOTES, DocumentID("a"), first)
    journal.failed(Direction.PULL, NOTES, DocumentID("b"), second)
    journal.failed(Direction.PULL, NOTES, DocumentID("c"), PeerError("HTTP", 404))
    assert journal.clock_skew is second
    journal.recovered(NOTES, DocumentID("b"))
    journal.recovered(NOTES, DocumentID("never failed"))
    assert journal.clock_skew is first
    journal.connected()
    assert journal.clock_skew is None
