"""The machines over whole peers find what they are there to find: each of these faults, planted."""

from dataclasses import replace

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from test_convergence import Convergence
from test_replicators import Replicators
from test_upheavals import Upheavals

from trio_p2p.errors import TrioP2PError
from trio_p2p.model import conflict
from trio_p2p.model.clock import HybridClock
from trio_p2p.model.conflict import Arrival
from trio_p2p.model.document import Revision
from trio_p2p.model.version import relate
from trio_p2p.replication import deltas, inserter, session
from trio_p2p.replication.blob_fetcher import BlobFetcher
from trio_p2p.replication.checkpoint import Checkpoint, RemoteSequences
from trio_p2p.replication.checkpointer import Checkpointer
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.replication.puller import Puller
from trio_p2p.replication.pusher import Pusher
from trio_p2p.replication.resolver import Resolver
from trio_p2p.replicator import Replicator
from trio_p2p.store import catalogue, checkpoints, documents, identity

# In an order that is always the same; the failure is not shrunk.
SEARCH = settings(
    max_examples=300,
    stateful_step_count=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
)
SHOWN = (AssertionError, TrioP2PError, pytest.fail.Exception)

FAULTS = {}


def fault(owner, name, machine=Convergence):
    """Registers a replacement for a function, given the function, and what is to find it."""

    def register(make):
        FAULTS[make.__name__.replace("_", " ")] = (owner, name, make, machine)
        return make

    return register


# --- Deciding -------------------------------------------------------------------------------------


@fault(Revision, "compare")
def revisions_are_compared_by_their_versions_alone(original):
    def compare(ours, theirs):
        ours, theirs = ours.version, theirs.version
        return relate(same=ours == theirs, includes=ours > theirs, included=ours < theirs)

    return compare


@fault(inserter, "judge_arrival")
def whatever_arrives_is_stored(original):
    def judge(current, arrived):
        verdict = original(current, arrived)
        return Arrival.STORE if verdict is Arrival.CONFLICT else verdict

    return judge


@fault(conflict, "keep")
def the_winner_does_not_include_the_loser(original):
    return lambda winner, loser, stamp: winner


@fault(Resolver, "find_existing")
def conflicts_of_before_are_forgotten(original):
    return lambda self: None


@fault(HybridClock, "see")
def clocks_do_not_heed_each_other(original):
    def see(self, time):
        last = self._last
        original(self, time)
        self._last = last

    return see


# --- Pushing --------------------------------------------------------------------------------------


@fault(Pusher, "_is_echo")
def echoes_are_recognised_by_document(original):
    return lambda self, row, known: known is not None


@fault(Pusher, "_is_echo", Upheavals)
def echoes_are_recognised_by_what_was_once_known(original):
    return lambda self, row, known: known == row.revision_id


@fault(Pusher, "_better_parent")
def what_was_refused_is_not_proposed_again(original):
    return lambda self, row, answer: None


@fault(Pusher, "_read_rows")
def what_is_proposed_counts_as_done(original):
    def read_rows(self):
        rows = original(self)
        for row, _ in rows:
            self._done.add(row.sequence)
        return rows

    return read_rows


@fault(Pusher, "_refuse", Upheavals)
def what_a_refused_revision_conflicts_with_is_not_fetched(original):
    def refuse(self, document_id, sequence):
        original(self, document_id, sequence)
        self._unfetched.pop(document_id, None)

    return refuse


@fault(Pusher, "retry_failed", Upheavals)
def what_failed_to_be_pushed_is_not_tried_again(original):
    async def retry_failed(self):
        self._failed.clear()
        await original(self)

    return retry_failed


# --- Pulling --------------------------------------------------------------------------------------


@fault(Puller, "_wanted")
def what_is_requested_counts_as_pulled(original):
    def wanted(self, txn, change, held):
        answer = original(self, txn, change, held)
        self._sequences.complete(change.sequence)
        return answer

    return wanted


@fault(Puller, "arrived")
def what_arrives_counts_as_pulled(original):
    def arrived(self, request, respond):
        for sent in request.revisions:
            self._sequences.complete(sent.sequence)
        original(self, request, respond)

    return arrived


@fault(RemoteSequences, "complete")
def gaps_in_what_was_pulled_are_passed_over(original):
    def complete(self, sequence):
        original(self, sequence)
        self.reached = sequence

    return complete


@fault(CouchbaseProfile, "subscribe")
def tombstones_are_never_pulled(original):
    async def subscribe(self, request):
        await original(self, replace(request, active_only=True))

    return subscribe


@fault(Puller, "retry_failed", Upheavals)
def what_failed_to_be_pulled_is_not_tried_again(original):
    async def retry_failed(self):
        self._failed.clear()
        await original(self)

    return retry_failed


@fault(inserter, "STATUS_LATER", Upheavals)
def versions_too_far_ahead_are_refused_for_good(original):
    return 403


# --- Deltas and blobs -----------------------------------------------------------------------------


@fault(deltas.Restorer, "_base")
def deltas_are_applied_to_what_is_current(original):
    def base(self, sent, delta):
        original(self, sent, delta)
        with self._link.engine.read() as txn:
            return documents.get(txn, self._link.number, sent.document_id).revision

    return base


@fault(BlobFetcher, "want")
def blobs_are_not_fetched(original):
    return lambda self, sent, on_ready: on_ready(None, [])


# --- Checkpoints ----------------------------------------------------------------------------------


@fault(Checkpoint, "agreed", Upheavals)
def only_our_own_checkpoint_counts(original):
    return lambda self, other: self


@fault(Checkpoint, "agreed", Upheavals)
def only_the_checkpoint_of_the_peer_counts(original):
    return lambda self, other: other


@fault(Checkpointer, "_vouched_for", Upheavals)
def doubtful_knowledge_is_vouched_for(original):
    return lambda self: self._link.collection.last_sequence


@fault(session.CollectionPlan, "checkpoint_id", Upheavals)
def checkpoints_do_not_name_the_databases(original):
    return lambda self, peer_key: f"cp-{self.collection.full_name}"


# --- Staying connected ----------------------------------------------------------------------------


@fault(Replicator, "_back_off", Replicators)
def replicators_do_not_come_back(original):
    async def back_off(self, failures):
        await trio.sleep_forever()

    return back_off


@fault(Replicator, "resume", Replicators)
def suspended_replicators_are_not_resumed(original):
    return lambda self: None


# --- Losing and restoring -------------------------------------------------------------------------


@fault(identity, "is_marked", Upheavals)
def a_backup_keeps_its_identity(original):
    return lambda directory: False


@fault(catalogue, "drop", Upheavals)
def a_collection_made_anew_inherits_checkpoints(original):
    def drop(full_name, txn):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "forget_all", lambda txn: None)
            return original(full_name, txn)

    return drop


def finds_fault(machine):
    found = []
    try:
        run_state_machine_as_test(machine, settings=SEARCH)
    except* SHOWN as failures:
        found.append(failures)
    return bool(found)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, monkeypatch):
    owner, attribute, make, machine = FAULTS[name]
    monkeypatch.setattr(owner, attribute, make(getattr(owner, attribute)))
    # Should the machine not get there that is made for it, the others may.
    others = [other for other in (Upheavals, Convergence) if other is not machine]
    assert any(finds_fault(each) for each in (machine, *others)), "no history shows the fault"
