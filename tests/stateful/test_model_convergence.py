"""Random histories of peers, on pure values; TRIO_P2P_HISTORIES in the environment: how many."""

import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from random import Random

import pytest

from trio_p2p import limits
from trio_p2p.ids import SourceID
from trio_p2p.model import conflict, version
from trio_p2p.model.clock import TIME_MIN, HybridClock
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import Arrival, ProposalStatus
from trio_p2p.model.document import Revision
from trio_p2p.model.resolvers import local_wins, remote_wins
from trio_p2p.model.version import Order, Version, VersionVector, join, relate
from trio_p2p.testing.histories import RESOLVERS, History, run_histories, run_history

HISTORIES = int(os.environ.get("TRIO_P2P_HISTORIES", "20000"))
# Each process takes this many at a time.
SLICE = 1_000


@pytest.mark.behaviour("X2b")
def test_peers_converge_whatever_the_history():
    slices = [range(at, min(at + SLICE, HISTORIES)) for at in range(0, HISTORIES, SLICE)]
    # Not forked: the test process has threads.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        for _ in pool.map(run_histories, slices):
            pass


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_peers_converge_with_each_resolver(resolver):
    for seed in range(100):
        run_history(seed, resolver)


@pytest.mark.parametrize("name", ["local wins", "remote wins", "always another merge"])
def test_peers_converge_with_resolvers_that_do_not_agree(name):
    for seed in range(1_000):
        merges = itertools.count()
        resolvers = {
            "local wins": local_wins,
            "remote wins": remote_wins,
            "always another merge": lambda _, merges=merges: {"merge": next(merges)},
        }
        run_history(seed, resolvers[name])


@pytest.mark.parametrize("room", [4, 5])
def test_peers_converge_though_vectors_are_pruned(room, monkeypatch):
    monkeypatch.setattr(limits, "VECTOR_VERSIONS_MAX", room)
    for seed in range(2_000):
        run_history(seed)


def merge_in_a_circle(merges_max):
    """Three peers merge what the next one has, all at once, and never twice in the same way.

    Returns after how many rounds they hold the same, None if they do not within a hundred.
    """
    sources = [SourceID(bytes([number]) * 16) for number in (1, 2, 3)]
    ticks = itertools.count(TIME_MIN)
    held = [Revision(VersionVector(Version(next(ticks), source))) for source in sources]
    merges = [0] * len(held)

    def meet(number):
        local, remote = held[number], held[(number + 1) % len(held)]
        match conflict.judge_arrival(local, remote):
            case Arrival.STORE:
                return conflict.supersede(local, remote)
            case Arrival.HELD:
                return local
        settled = conflict.settle_alone(
            local, remote, lambda: Version(next(ticks), sources[number])
        )
        if settled is not None:
            return settled
        merges[number] = merges[number] + 1 if conflict.merges_merges(local, remote) else 0
        chosen = max(local, remote, key=lambda revision: revision.version).body
        body = chosen if merges[number] > merges_max else encode_body({"merge": next(ticks)})
        stamp = Version(next(ticks), sources[number])
        return conflict.carry_out(local, remote, body, False, lambda: stamp)

    for rounds in range(100):
        if len({revision.version for revision in held}) == 1:
            return rounds
        held = [meet(number) for number in range(len(held))]
    return None


def test_peers_that_go_on_merging_in_a_circle_settle_once_they_may_not():
    assert merge_in_a_circle(limits.MERGES_OF_MERGES_MAX) < 20
    assert merge_in_a_circle(10**9) is None


def test_a_seed_replays_its_history():
    first, second = History(Random(7)), History(Random(7))
    first.run()
    second.run()
    assert len(first.steps) > 3
    assert first.steps == second.steps


def test_a_failure_names_its_seed_and_tells_its_steps(monkeypatch):
    monkeypatch.setattr(conflict, "judge_arrival", lambda current, arrived: Arrival.STORE)
    failure = find_failure()
    seed = str(failure).removeprefix("history ").partition(":")[0]
    assert "peers" in failure.__notes__[0]
    with pytest.raises(AssertionError, match=f"^history {seed}: "):
        run_history(int(seed))


# --- Planted faults: each breaks one rule, and a history that shows it must be found -------------


def find_failure() -> AssertionError:
    for seed in range(HISTORIES):
        try:
            run_history(seed)
        except AssertionError as exc:
            return exc
    pytest.fail("no history shows the fault")


def compare_by_time_only(revision, other):
    return relate(
        same=revision.version == other.version,
        includes=revision.version > other.version,
        included=revision.version < other.version,
    )


def compare_by_vectors_in_full(revision, other):
    if revision.vector == other.vector:
        return Order.SAME
    includes = all(revision.vector.has(version) for version in other.vector)
    included = all(other.vector.has(version) for version in revision.vector)
    return relate(same=False, includes=includes, included=included)


def keep_by_joining_always(winner, loser, stamp):
    return replace(winner, vector=join(winner.vector, loser.vector))


def keep_without_joining(winner, loser, stamp):
    return winner


def settle_by_keeping_the_local_side(local, remote, stamp):
    return local


def edit_that_forgets_what_it_was_made_on(vector, version):
    return VersionVector(version)


def settle_by_keeping_both_merges(local, remote, stamp):
    same_merge = local.vector.merged and set(local.vector.merged) == set(remote.vector.merged)
    return local if same_merge or (local.deleted and remote.deleted) else None


def merge_that_forgets_the_second(first, second, body, deleted, version):
    return first.edited(version, body, deleted=deleted)


def hold_all_but_new_documents(current, proposed, parent):
    return ProposalStatus.WANTED if current is None else ProposalStatus.HELD


def prune_without_regard_to_what_was_merged(current, merged, previous, *, keeping):
    room = limits.VECTOR_VERSIONS_MAX - 1 - len(merged)
    return VersionVector(current, merged, tuple(sorted(previous, reverse=True)[:room]))


def test_vectors_pruned_without_regard_to_what_was_merged_are_found(monkeypatch):
    monkeypatch.setattr(limits, "VECTOR_VERSIONS_MAX", 4)
    monkeypatch.setattr(version, "_pruned", prune_without_regard_to_what_was_merged)
    find_failure()


FAULTS = {
    "versions compared by time only": (Revision, "compare", compare_by_time_only),
    "vectors compared in full": (Revision, "compare", compare_by_vectors_in_full),
    "an older winner kept without a new version": (conflict, "keep", keep_by_joining_always),
    "the loser's vector forgotten": (conflict, "keep", keep_without_joining),
    "the local side kept": (conflict, "settle_alone", settle_by_keeping_the_local_side),
    "equal merges kept on both sides": (conflict, "settle_alone", settle_by_keeping_both_merges),
    "an edit without what it was made on": (
        VersionVector,
        "edited",
        edit_that_forgets_what_it_was_made_on,
    ),
    "a merge of one side only": (conflict, "merge_revisions", merge_that_forgets_the_second),
    "proposals taken for held": (
        conflict,
        "judge_proposal",
        hold_all_but_new_documents,
    ),
    "arrivals stored without comparing": (
        conflict,
        "judge_arrival",
        lambda current, arrived: Arrival.STORE,
    ),
    "versions of others not seen by the clock": (HybridClock, "see", lambda clock, time: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    owner, name, broken = FAULTS[fault]
    monkeypatch.setattr(owner, name, broken)
    find_failure()
