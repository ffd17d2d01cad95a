"""The convergence machine finds what it is there to find: each of these faults, planted."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from test_convergence import Convergence

from trio_p2p.model.document import Revision
from trio_p2p.model.version import relate
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.replication.puller import Puller
from trio_p2p.replication.pusher import Pusher

# What the profile "ci" tries, in an order that is always the same; the failure is not shrunk.
SEARCH = settings(
    max_examples=200,
    stateful_step_count=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def plant_comparing_by_current_version_only(patch):
    def compare(ours, theirs):
        ours, theirs = ours.version, theirs.version
        return relate(same=ours == theirs, includes=ours > theirs, included=ours < theirs)

    patch.setattr(Revision, "compare", compare)


def plant_echoes_recognised_by_document(patch):
    patch.setattr(Pusher, "_is_echo", staticmethod(lambda row, known: known is not None))


def plant_sequences_completed_when_requested(patch):
    wanted = Puller._wanted

    def wanted_and_completed(self, txn, change):
        answer = wanted(self, txn, change)
        self._sequences.complete(change.sequence)
        return answer

    patch.setattr(Puller, "_wanted", wanted_and_completed)


def plant_sequences_completed_on_arrival(patch):
    arrived = Puller.arrived

    def arrived_and_completed(self, request, respond):
        for sent in request.revisions:
            self._sequences.complete(sent.sequence)
        arrived(self, request, respond)

    patch.setattr(Puller, "arrived", arrived_and_completed)


def plant_no_proposing_again(patch):
    patch.setattr(Pusher, "_better_parent", lambda self, row, answer: None)


def plant_tombstones_never_pulled(patch):
    subscribe = CouchbaseProfile.subscribe

    async def subscribe_to_live_ones(self, request):
        await subscribe(self, replace(request, active_only=True))

    patch.setattr(CouchbaseProfile, "subscribe", subscribe_to_live_ones)


@pytest.mark.parametrize(
    "plant",
    [
        plant_comparing_by_current_version_only,
        plant_echoes_recognised_by_document,
        plant_sequences_completed_when_requested,
        plant_sequences_completed_on_arrival,
        plant_no_proposing_again,
        plant_tombstones_never_pulled,
    ],
    ids=lambda plant: plant.__name__.removeprefix("plant_").replace("_", " "),
)
def test_a_planted_fault_is_found(plant, monkeypatch):
    plant(monkeypatch)
    found = []
    try:
        run_state_machine_as_test(Convergence, settings=SEARCH)
    except* AssertionError as failures:
        found.append(failures)
    assert found, "no history shows the fault"
