"""Starting, suspending, resuming and stopping a replicator, whatever it is doing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_p2p
from trio_p2p import ActivityLevel, limits
from trio_p2p.replication import passive
from trio_p2p.replication.messages import CollectionsReply
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.network import MemoryNetwork, open_network
from trio_p2p.transport.memory import MemoryTransport, memory_transport_pair

STOPPED, OFFLINE = ActivityLevel.STOPPED, ActivityLevel.OFFLINE
CONNECTING, IDLE, BUSY = ActivityLevel.CONNECTING, ActivityLevel.IDLE, ActivityLevel.BUSY
REFUSED = trio_p2p.PeerUnreachableError("nobody is there")


@dataclass
class Pair:
    """Two databases, and a network from the till to the shop's listener."""

    shop: trio_p2p.Database
    till: trio_p2p.Database
    network: MemoryNetwork

    def configuration(self, **settings: Any) -> trio_p2p.ReplicatorConfiguration:
        defaults: dict[str, Any] = {
            "target": self.network.connect,
            "target_id": "the shop",
            "collections": [self.till.default_collection],
            "continuous": True,
        }
        return trio_p2p.ReplicatorConfiguration(**(defaults | settings))


@asynccontextmanager
async def open_pair(path: Path) -> AsyncIterator[Pair]:
    async with (
        open_test_database(path / "shop.p2p") as shop,
        open_test_database(path / "till.p2p") as till,
        open_network([shop.default_collection]) as network,
    ):
        yield Pair(shop, till, network)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path) as pair:
        yield pair


async def stopped_with(config: trio_p2p.ReplicatorConfiguration) -> trio_p2p.ReplicatorStatus:
    """What it says that stops by itself."""
    async with trio_p2p.open_replicator(config) as replicator:
        return await replicator.wait_for(STOPPED)


# --- States in which it may be asked for something ------------------------------------------------


def conflict(pair: Pair) -> Callable[[], Awaitable[None]]:
    """Makes a conflict, for a resolver to decide."""

    async def make() -> None:
        await pair.shop.default_collection.put("apple", {"by": "shop"})
        await pair.till.default_collection.put("apple", {"by": "till"})

    return make


async def never(*args: Any) -> Any:
    await trio.sleep_forever()


async def reach_connecting(pair: Pair, settings: dict[str, Any]) -> ActivityLevel:
    settings["target"] = never
    return CONNECTING


async def reach_handshake(pair: Pair, settings: dict[str, Any]) -> ActivityLevel:
    pair.network.silent = True
    return CONNECTING


async def reach_offline(pair: Pair, settings: dict[str, Any]) -> ActivityLevel:
    pair.network.failure = REFUSED
    settings["max_attempt_wait"] = 10_000
    return OFFLINE


async def reach_idle(pair: Pair, settings: dict[str, Any]) -> ActivityLevel:
    return IDLE


async def reach_busy(pair: Pair, settings: dict[str, Any]) -> ActivityLevel:
    """A resolver that never returns keeps it busy."""
    await conflict(pair)()
    collection = pair.till.default_collection
    plan = trio_p2p.CollectionConfiguration(conflict_resolver=never)
    settings["collections"] = {collection: plan}
    return BUSY


REACH = [reach_connecting, reach_handshake, reach_offline, reach_idle, reach_busy]


@asynccontextmanager
async def reached(pair: Pair, reach: Any) -> AsyncIterator[trio_p2p.Replicator]:
    """A replicator that is in one of these states."""
    settings: dict[str, Any] = {}
    level = await reach(pair, settings)
    async with trio_p2p.open_replicator(pair.configuration(**settings)) as replicator:
        await replicator.wait_for(level)
        await wait_all_tasks_blocked()
        yield replicator


# --- Stopping ------------------------------------------------------------------------------------


@pytest.mark.behaviour("R8")
@pytest.mark.parametrize("reach", REACH)
async def test_stopping_is_prompt_whatever_it_is_doing(
    pair: Pair, autojump_clock: Any, reach: Any
) -> None:
    async with reached(pair, reach) as replicator:
        before = trio.current_time()
        await replicator.stop()
        took_s = trio.current_time() - before
        assert took_s < 1 + (limits.RESOLVING_TIMEOUT_S if reach is reach_busy else 0)
        assert replicator.status.activity is STOPPED


async def test_a_peer_that_answers_nothing_holds_up_the_stop_no_longer_than_allowed(
    pair: Pair,
    autojump_clock: Any,
) -> None:
    async with reached(pair, reach_idle) as replicator:
        pair.network.freeze()
        await pair.till.default_collection.put("pear", {})
        before = trio.current_time()
        await replicator.stop()
        assert trio.current_time() - before < limits.STOP_TIMEOUT_S + 1
        assert replicator.status.activity is STOPPED


async def test_what_was_done_when_it_is_stopped_is_not_done_again(
    pair: Pair, autojump_clock: Any
) -> None:
    async with trio_p2p.open_replicator(pair.configuration()) as replicator:
        await replicator.wait_for(IDLE)
        for number in range(10):
            await pair.till.default_collection.put(f"pear-{number}", {})
            await pair.shop.default_collection.put(f"apple-{number}", {})
        await trio.sleep(1)
    assert pair.shop.default_collection.count == pair.till.default_collection.count == 20
    assert replicator.status.error is None
    result = await trio_p2p.replicate(pair.configuration(continuous=False))
    assert result.statistics.documents_offered == 0


async def test_stopping_waits_for_a_resolver_that_decides_soon(
    pair: Pair, autojump_clock: Any
) -> None:
    async def decide(conflict: trio_p2p.Conflict) -> trio_p2p.Document | None:
        await trio.sleep(2)
        return conflict.local

    await conflict(pair)()
    plan = trio_p2p.CollectionConfiguration(conflict_resolver=decide)
    config = pair.configuration(collections={pair.till.default_collection: plan})
    async with trio_p2p.open_replicator(config) as replicator:
        await replicator.wait_for(BUSY)
        await wait_all_tasks_blocked()
        await replicator.stop()
    assert replicator.statistics().conflicts_resolved == 1


async def test_a_resolver_that_cannot_be_cancelled_holds_up_the_stop_only_so_long(
    pair: Pair,
    autojump_clock: Any,
) -> None:
    async def decide(conflict: trio_p2p.Conflict) -> trio_p2p.Document | None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1_000)
        return conflict.local

    await conflict(pair)()
    plan = trio_p2p.CollectionConfiguration(conflict_resolver=decide)
    config = pair.configuration(collections={pair.till.default_collection: plan})
    async with trio_p2p.open_replicator(config) as replicator:
        await replicator.wait_for(BUSY)
        await wait_all_tasks_blocked()
        before = trio.current_time()
        await replicator.stop()
        assert trio.current_time() - before < limits.STOP_TIMEOUT_S + limits.CUT_TIMEOUT_S + 1


async def test_a_stop_that_is_cancelled_cuts_it_off(pair: Pair, autojump_clock: Any) -> None:
    async with reached(pair, reach_busy) as replicator:
        with trio.move_on_after(1):
            await replicator.stop()
        with trio.fail_after(0.1):
            await replicator.wait_for(STOPPED)


async def test_stopping_one_that_does_not_run_does_nothing(pair: Pair, autojump_clock: Any) -> None:
    replicator = trio_p2p.Replicator(pair.configuration())
    assert replicator.status == trio_p2p.ReplicatorStatus(STOPPED)
    await replicator.stop()
    await replicator.run()
    assert pair.network.attempted_at == []
    assert replicator.status.activity is STOPPED
    await replicator.stop()


async def test_another_of_the_same_kind_may_start_once_one_has_stopped(
    pair: Pair, autojump_clock: Any
) -> None:
    for _ in range(3):
        async with trio_p2p.open_replicator(pair.configuration()) as replicator:
            await replicator.wait_for(IDLE)
            await replicator.stop()


async def test_one_that_is_stopped_offline_keeps_what_kept_it_offline(
    pair: Pair, autojump_clock: Any
) -> None:
    async with reached(pair, reach_offline) as replicator:
        await replicator.stop()
    assert replicator.status.error is not None
    assert replicator.status.error.__cause__ is REFUSED


# --- Suspending ----------------------------------------------------------------------------------


@pytest.mark.behaviour("R7b")
@pytest.mark.parametrize("reach", REACH)
@pytest.mark.parametrize(
    ("calls", "level"),
    [
        ("suspend", OFFLINE),
        ("suspend suspend", OFFLINE),
        ("suspend resume suspend", OFFLINE),
        ("stop suspend", STOPPED),
        ("suspend stop", STOPPED),
        ("stop resume", STOPPED),
        ("suspend stop resume", STOPPED),
        ("stop suspend resume", STOPPED),
        ("stop stop", STOPPED),
    ],
)
async def test_in_whatever_order_the_last_word_counts_and_stopping_beats_suspending(
    pair: Pair, autojump_clock: Any, reach: Any, calls: str, level: ActivityLevel
) -> None:
    async with reached(pair, reach) as replicator:
        act = {
            "suspend": replicator.suspend,
            "resume": replicator.resume,
            "stop": replicator.request_stop,
        }
        for call in calls.split():
            act[call]()
        with trio.fail_after(limits.STOP_TIMEOUT_S + limits.CUT_TIMEOUT_S):
            await replicator.wait_for(level)
        attempts = len(pair.network.attempted_at)
        await trio.sleep(50_000)
        assert replicator.status.activity is level
        assert len(pair.network.attempted_at) == attempts


@pytest.mark.behaviour("R13")
@pytest.mark.parametrize("reach", [reach_idle, reach_handshake, reach_offline])
@pytest.mark.parametrize("pause_s", [0, 1, 1_000])
async def test_one_that_is_resumed_connects_again_at_once(
    pair: Pair, autojump_clock: Any, reach: Any, pause_s: float
) -> None:
    async with reached(pair, reach) as replicator:
        replicator.suspend()
        await trio.sleep(pause_s)
        pair.network.silent, pair.network.failure = False, None
        await pair.till.default_collection.put("pear", {})
        before = trio.current_time()
        replicator.resume()
        await replicator.wait_for(BUSY, IDLE)
        await replicator.wait_for(IDLE)
        assert trio.current_time() - before < 2
        assert pair.shop.default_collection.get("pear") is not None


async def test_suspending_and_resuming_at_once_ends_a_pause(
    pair: Pair, autojump_clock: Any
) -> None:
    async with reached(pair, reach_offline) as replicator:
        # Far into the pauses, and then the network is back.
        await trio.sleep(5_000)
        pair.network.failure = None
        before = trio.current_time()
        replicator.suspend()
        replicator.resume()
        await replicator.wait_for(IDLE)
        assert trio.current_time() - before < 2


async def test_one_that_is_suspended_leaves_in_peace(pair: Pair, autojump_clock: Any) -> None:
    async with reached(pair, reach_idle) as replicator:
        replicator.suspend()
        status = await replicator.wait_for(OFFLINE)
        assert status.error is None
        await wait_all_tasks_blocked()
        assert pair.network.listener.status.connection_count == 0


async def test_resuming_one_that_has_stopped_does_nothing(pair: Pair, autojump_clock: Any) -> None:
    async with reached(pair, reach_idle) as replicator:
        await replicator.stop()
        replicator.resume()
        replicator.suspend()
        await trio.sleep(1_000)
        assert replicator.status.activity is STOPPED
        assert len(pair.network.attempted_at) == 1


async def test_one_may_be_suspended_before_it_runs(pair: Pair, autojump_clock: Any) -> None:
    replicator = trio_p2p.Replicator(pair.configuration())
    replicator.suspend()
    async with trio.open_nursery() as nursery:
        await nursery.start(replicator.run)
        await replicator.wait_for(OFFLINE)
        await trio.sleep(100)
        assert pair.network.attempted_at == []
        replicator.resume()
        await replicator.wait_for(IDLE)
        await replicator.stop()


async def test_a_one_shot_that_is_resumed_does_the_rest(pair: Pair, autojump_clock: Any) -> None:
    def decide(conflict: trio_p2p.Conflict) -> trio_p2p.Document | None:
        replicator.suspend()
        return conflict.local

    await conflict(pair)()
    plan = trio_p2p.CollectionConfiguration(conflict_resolver=decide)
    replicator = trio_p2p.Replicator(
        pair.configuration(continuous=False, collections={pair.till.default_collection: plan})
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(replicator.run)
        await replicator.wait_for(OFFLINE)
        assert not replicator.is_done
        assert (by(pair.till), by(pair.shop)) == ("till", "shop")
        replicator.resume()
    assert replicator.is_done
    assert (by(pair.till), by(pair.shop)) == ("till", "till")


def by(database: trio_p2p.Database) -> str:
    """Who wrote the document that was in conflict."""
    document = database.default_collection.get("apple")
    assert document is not None
    return str(document["by"])


async def test_after_resuming_as_many_attempts_may_fail_as_at_the_start(
    pair: Pair, autojump_clock: Any
) -> None:
    pair.network.failure = REFUSED
    config = pair.configuration(max_attempts=3, max_attempt_wait=10)
    async with trio_p2p.open_replicator(config) as replicator:
        await replicator.wait_for(OFFLINE)
        replicator.suspend()
        await trio.sleep(1)
        replicator.resume()
        await replicator.wait_for(STOPPED)
    assert len(pair.network.attempted_at) == 1 + 3


@pytest.mark.parametrize("at_once", [False, True])
async def test_an_attempt_that_suspending_cuts_off_has_not_failed(
    pair: Pair, autojump_clock: Any, at_once: bool
) -> None:
    async def fail_when_cut() -> trio.abc.Stream:
        try:
            return await never()
        finally:
            raise OSError("closed while connecting")

    dials = iter([fail_when_cut, pair.network.connect])
    config = pair.configuration(target=lambda: next(dials)(), max_attempts=1)
    async with trio_p2p.open_replicator(config) as replicator:
        await wait_all_tasks_blocked()
        replicator.suspend()
        if not at_once:
            await replicator.wait_for(OFFLINE)
        replicator.resume()
        await replicator.wait_for(IDLE)


async def test_one_whose_connection_is_lost_while_it_is_suspended_may_be_resumed(
    pair: Pair, autojump_clock: Any
) -> None:
    settings: dict[str, Any] = {"max_attempts": 1}
    await reach_busy(pair, settings)
    async with trio_p2p.open_replicator(pair.configuration(**settings)) as replicator:
        await replicator.wait_for(BUSY)
        await wait_all_tasks_blocked()
        replicator.suspend()
        await pair.network.cut()
        status = await replicator.wait_for(OFFLINE)
        assert status.error is not None
        replicator.resume()
        await replicator.wait_for(BUSY)


# --- Running at all ------------------------------------------------------------------------------


async def test_two_of_the_same_kind_do_not_run_at_once(pair: Pair, autojump_clock: Any) -> None:
    config = pair.configuration()
    async with trio_p2p.open_replicator(config) as replicator:
        # Before the peer is met, its name tells; then its identity.
        for _ in range(2):
            with pytest.raises(trio_p2p.ConfigurationError):
                async with trio_p2p.open_replicator(config):
                    pass
            with pytest.raises(trio_p2p.ConfigurationError):
                await trio_p2p.replicate(pair.configuration(continuous=False))
            await replicator.wait_for(IDLE)


async def test_one_that_may_not_run_has_stopped_and_tells_why(
    pair: Pair, autojump_clock: Any
) -> None:
    async with trio_p2p.open_replicator(pair.configuration()) as first:
        await first.wait_for(IDLE)
        second = trio_p2p.Replicator(pair.configuration())
        with pytest.raises(trio_p2p.ConfigurationError) as refused:
            await second.run()
        assert (await second.wait_for(STOPPED)).error is not None
        with pytest.raises(trio_p2p.ReplicationError, match="running already") as caught:
            await second.wait_for(IDLE)
        assert caught.value.__cause__ is second.status.error
        assert second.status.error.__cause__ is refused.value
        assert [status.activity async for status in second.status_changes()] == [STOPPED]
        assert [event async for event in second.document_replications()] == []
        await second.stop()
        assert first.status.activity is IDLE
    # It has had its run.
    with pytest.raises(trio_p2p.ConfigurationError):
        await second.run()


async def test_the_same_peer_by_another_name_is_noticed_when_it_is_met(
    pair: Pair, autojump_clock: Any
) -> None:
    async with trio_p2p.open_replicator(pair.configuration()) as replicator:
        await replicator.wait_for(IDLE)
        for name in ("another name", None):
            with pytest.raises(trio_p2p.ReplicationError) as caught:
                await trio_p2p.replicate(pair.configuration(target_id=name, continuous=False))
            assert not caught.value.retryable
            assert "running already" in str(caught.value)


@pytest.mark.parametrize("target_id", [None, "the shop"])
async def test_one_whose_target_leads_to_another_peer_leaves_the_peer_before_to_others(
    pair: Pair, tmp_path: Path, autojump_clock: Any, target_id: str | None
) -> None:
    async with (
        open_test_database(tmp_path / "stall.p2p") as stall,
        open_network([stall.default_collection]) as to_stall,
    ):
        ways = [pair.network]
        config = pair.configuration(target=lambda: ways[-1].connect(), target_id=target_id)
        async with trio_p2p.open_replicator(config) as first:
            await first.wait_for(IDLE)
            ways.append(to_stall)
            await pair.network.cut()
            await first.wait_for(OFFLINE)
            await first.wait_for(IDLE)
            by_another_name = pair.configuration(target_id="another name")
            async with trio_p2p.open_replicator(by_another_name) as second:
                await second.wait_for(IDLE)
                # Now each has its own peer, and its own target.
                for taken in (to_stall, pair.network):
                    third = pair.configuration(target=taken.connect, target_id=None)
                    status = await stopped_with(third)
                    assert "running already" in str(status.error)
                if target_id is not None:
                    with pytest.raises(trio_p2p.ConfigurationError):
                        await trio_p2p.Replicator(config).run()
                assert first.status.activity is second.status.activity is IDLE
                # It may not come back where another one is now.
                ways.append(pair.network)
                await to_stall.cut()
                status = await first.wait_for(STOPPED)
                assert "running already" in str(status.error)


async def test_one_whose_target_leads_to_a_peer_that_nothing_names_leaves_the_one_before_to_others(
    pair: Pair, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pair.configuration(target_id=None)
    async with trio_p2p.open_replicator(config) as first:
        await first.wait_for(IDLE)
        with monkeypatch.context() as patch:
            patch.setattr(passive, "CollectionsReply", lambda held, _: CollectionsReply(held, None))
            await pair.network.cut()
            await first.wait_for(OFFLINE)
            await first.wait_for(IDLE)
        async with trio_p2p.open_replicator(config) as second:
            await second.wait_for(IDLE)


async def test_between_its_attempts_a_peer_is_left_to_no_other(
    pair: Pair, autojump_clock: Any
) -> None:
    async with (
        open_network([pair.shop.default_collection]) as other_way,
        trio_p2p.open_replicator(pair.configuration(target_id=None)) as first,
    ):
        await first.wait_for(IDLE)
        pair.network.failure = REFUSED
        await pair.network.cut()
        await first.wait_for(OFFLINE)
        status = await stopped_with(pair.configuration(target=other_way.connect, target_id=None))
        assert "running already" in str(status.error)
        pair.network.failure = None
        await first.wait_for(IDLE)


async def test_replicators_that_differ_in_direction_or_collections_run_at_once(
    pair: Pair, autojump_clock: Any
) -> None:
    other = await pair.till.create_collection("other")
    await pair.shop.create_collection("other")
    # The listener serves the default collection only, so the last one fails: but by itself.
    push = pair.configuration(replicator_type=trio_p2p.ReplicatorType.PUSH)
    pull = pair.configuration(replicator_type=trio_p2p.ReplicatorType.PULL)
    async with (
        trio_p2p.open_replicator(pair.configuration()) as first,
        trio_p2p.open_replicator(push) as second,
        trio_p2p.open_replicator(pull) as third,
        trio_p2p.open_replicator(pair.configuration(collections=[other])) as fourth,
    ):
        for replicator in (first, second, third):
            await replicator.wait_for(IDLE)
        status = await fourth.wait_for(STOPPED)
        assert isinstance(status.error, trio_p2p.ReplicationError)
        assert status.error.status == 404


@pytest.mark.behaviour("R20")
async def test_closing_the_database_stops_it_first(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_pair(tmp_path) as pair, trio.open_nursery() as nursery:
        async with open_test_database(tmp_path / "other.p2p") as other:
            config = pair.configuration(collections=[other.default_collection])
            replicator = trio_p2p.Replicator(config)
            await nursery.start(replicator.run)
            await replicator.wait_for(IDLE)
            await other.default_collection.put("pear", {})
            await pair.shop.default_collection.put("apple", {})
            await trio.sleep(0.1)
        assert replicator.status == trio_p2p.ReplicatorStatus(STOPPED, replicator.status.progress)
        assert replicator.statistics().documents_pushed == 1
        assert replicator.statistics().documents_pulled == 1


@pytest.mark.behaviour("R20")
async def test_a_one_shot_cut_short_by_closing_the_database_is_a_failure(
    tmp_path: Path, autojump_clock: Any
) -> None:
    errors = []

    async def replicate(config: trio_p2p.ReplicatorConfiguration) -> None:
        with pytest.raises(trio_p2p.ReplicationError) as caught:
            await trio_p2p.replicate(config)
        errors.append(caught.value)

    async with open_pair(tmp_path) as pair, trio.open_nursery() as nursery:
        pair.network.failure = REFUSED
        async with open_test_database(tmp_path / "other.p2p") as other:
            config = pair.configuration(collections=[other.default_collection], continuous=False)
            nursery.start_soon(replicate, config)
            await trio.sleep(1)
    [error] = errors
    assert error.retryable


async def test_on_a_closed_database_it_does_not_run(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_pair(tmp_path) as pair:
        async with open_test_database(tmp_path / "other.p2p") as other:
            config = pair.configuration(collections=[other.default_collection])
        replicator = trio_p2p.Replicator(config)
        with pytest.raises(trio_p2p.StoreClosedError):
            await replicator.run()
        assert (await replicator.wait_for(STOPPED)).error is not None
        with pytest.raises(trio_p2p.StoreClosedError):
            async with trio_p2p.open_replicator(config):
                pass


async def test_it_may_be_stopped_from_a_callback(pair: Pair, autojump_clock: Any) -> None:
    replicators: list[trio_p2p.Replicator] = []

    def decide(conflict: trio_p2p.Conflict) -> trio_p2p.Document | None:
        assert replicators[0].status.activity is BUSY
        replicators[0].request_stop()
        return conflict.local

    await conflict(pair)()
    plan = trio_p2p.CollectionConfiguration(conflict_resolver=decide)
    config = pair.configuration(collections={pair.till.default_collection: plan})
    async with trio_p2p.open_replicator(config) as replicator:
        replicators.append(replicator)
        await replicator.wait_for(STOPPED)
    assert replicator.statistics().conflicts_resolved == 1


@pytest.mark.behaviour("R9a")
@pytest.mark.parametrize(("code", "level"), [(1001, OFFLINE), (4001, OFFLINE), (1000, STOPPED)])
async def test_a_peer_that_goes_away_is_connected_to_again(
    tmp_path: Path, autojump_clock: Any, code: int, level: ActivityLevel
) -> None:
    """One that says that it is done is not, nor one that tells never to come back."""

    async def dial() -> MemoryTransport:
        near, far = memory_transport_pair()
        await far.aclose(code)
        return near

    async with open_test_database(tmp_path / "till.p2p") as till:
        config = trio_p2p.ReplicatorConfiguration(
            target=dial, collections=[till.default_collection], continuous=True
        )
        async with trio_p2p.open_replicator(config) as replicator:
            status = await replicator.wait_for(level)
            assert isinstance(status.error, trio_p2p.ReplicationError)
            assert status.error.retryable == (level is OFFLINE)


# --- What it tells -------------------------------------------------------------------------------


async def test_its_activity_goes_from_connecting_over_busy_to_idle_and_stopped(
    pair: Pair, autojump_clock: Any
) -> None:
    for number in range(5):
        await pair.till.default_collection.put(f"pear-{number}", {})
    levels: list[ActivityLevel] = []
    totals: list[tuple[int, int]] = []

    async def watch(replicator: trio_p2p.Replicator) -> None:
        async for status in replicator.status_changes():
            if not levels or levels[-1] is not status.activity:
                levels.append(status.activity)
            totals.append((status.progress.completed, status.progress.total))

    async with trio.open_nursery() as nursery:
        async with trio_p2p.open_replicator(pair.configuration()) as replicator:
            nursery.start_soon(watch, replicator)
            await replicator.wait_for(IDLE)
            await trio.sleep(1)
            await pair.till.default_collection.put("plum", {})
            await replicator.wait_for(BUSY)
            await replicator.wait_for(IDLE)
            await trio.sleep(1)
    assert levels == [CONNECTING, BUSY, IDLE, BUSY, IDLE, BUSY, STOPPED]
    assert all(completed <= total for completed, total in totals)
    assert totals == sorted(totals)
    assert totals[-1] == (6, 6)


async def test_waiting_for_what_it_will_not_do_ends_when_it_stops_as_it_was_to(
    pair: Pair, autojump_clock: Any
) -> None:
    stopped = trio_p2p.Replicator(pair.configuration())
    done = trio_p2p.Replicator(pair.configuration(continuous=False))
    for replicator in (stopped, done):
        async with trio.open_nursery() as nursery:
            await nursery.start(replicator.run)
            if replicator is stopped:
                await replicator.wait_for(IDLE)
                nursery.start_soon(replicator.stop)
            status = await replicator.wait_for(OFFLINE)
            assert (status.activity, status.error) == (STOPPED, None)


@pytest.mark.parametrize("asked", ["never", "later"])
async def test_waiting_for_what_it_will_not_do_raises_when_it_stops_by_itself(
    pair: Pair, autojump_clock: Any, asked: str
) -> None:
    pair.network.failure = REFUSED
    async with trio_p2p.open_replicator(pair.configuration(max_attempts=1)) as replicator:
        await replicator.wait_for(STOPPED)
        if asked == "later":
            await replicator.stop()
        with pytest.raises(trio_p2p.ReplicationError, match=str(REFUSED)) as caught:
            await replicator.wait_for(IDLE)
        assert caught.value.__cause__ is replicator.status.error


async def test_waiting_raises_when_the_run_is_cancelled(pair: Pair, autojump_clock: Any) -> None:
    replicator = trio_p2p.Replicator(pair.configuration())
    async with trio.open_nursery() as nursery:
        await nursery.start(replicator.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(trio_p2p.ReplicationError):
        await replicator.wait_for(IDLE)


async def test_mere_progress_is_told_at_most_every_200_ms(pair: Pair, autojump_clock: Any) -> None:
    told_at: list[float] = []

    async def watch(replicator: trio_p2p.Replicator) -> None:
        last = None
        async for status in replicator.status_changes():
            if status.activity is last:
                told_at.append(trio.current_time())
            last = status.activity

    async with trio.open_nursery() as nursery:
        async with trio_p2p.open_replicator(pair.configuration()) as replicator:
            nursery.start_soon(watch, replicator)
            await replicator.wait_for(IDLE)
            for number in range(40):
                await pair.till.default_collection.put(f"pear-{number}", {})
                await trio.sleep(0.05)
    assert told_at
    pauses = [later - earlier for earlier, later in pairwise(told_at)]
    assert min(pauses) >= limits.PROGRESS_INTERVAL_S - 1e-9
